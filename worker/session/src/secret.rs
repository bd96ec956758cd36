//! Bytes that can be used but not printed.
//!
//! A `Secret` has neither `Display` nor `Serialize`; its `Debug` shows the length only, and its memory is
//! overwritten when it goes. It enters no key, layer, log or record: code that wants to put one there has
//! to call [`Secret::expose`], which is easy to look for in a review.
use std::fmt;

/// The most a secret may hold, in bytes; the same limit `docker buildx` has.
pub const MAX_SECRET_BYTES: usize = 500 * 1024;

/// Bytes of a secret; printed as their length only.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Wraps the bytes; the caller keeps no other copy.
    pub fn new(bytes: Vec<u8>) -> Secret {
        Secret(bytes)
    }

    /// Shows the bytes to the one who must have them: a tmpfs file, an `Authorization` header.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as text, `None` where they are no UTF-8.
    pub fn expose_text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True for a secret of no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Secret {
        Secret(text.into_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.fill(0);
        // Keeps the compiler from dropping writes to memory nobody reads again.
        std::hint::black_box(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_byte_of_a_secret() {
        let secret = Secret::from("hunter2".to_owned());
        assert_eq!(format!("{secret:?}"), "Secret(7 bytes)");
        assert_eq!(secret.expose(), b"hunter2");
    }
}

//! Messages of the agent protocol and the encoding that all of ssh shares (RFC 4251, section 5).
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// No request or answer is longer; OpenSSH has the same limit.
const MAX_MESSAGE_BYTES: usize = 256 * 1024;

/// The request could not be answered.
pub(crate) const FAILURE: u8 = 5;
/// Which keys are there?
pub(crate) const REQUEST_IDENTITIES: u8 = 11;
/// These.
pub(crate) const IDENTITIES_ANSWER: u8 = 12;
/// Sign this.
pub(crate) const SIGN_REQUEST: u8 = 13;
/// The signature.
pub(crate) const SIGN_RESPONSE: u8 = 14;
/// A flag of a request: RSA with SHA-256.
pub(crate) const RSA_SHA2_256: u32 = 2;
/// A flag of a request: RSA with SHA-512.
pub(crate) const RSA_SHA2_512: u32 = 4;

/// Reads one message, without its length; `None` when the other end is done.
///
/// # Errors
/// Those of the stream; `InvalidData` for an empty or overlong message.
pub(crate) async fn receive(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let length = match from.read_u32().await {
        Ok(length) => length as usize,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length == 0 || length > MAX_MESSAGE_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    from.read_exact(&mut message).await?;
    Ok(Some(message))
}

/// Sends one message.
///
/// # Errors
/// Those of the stream; `InvalidData` for an overlong message.
pub(crate) async fn send(to: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u32::try_from(message.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let mut whole = length.to_be_bytes().to_vec();
    whole.extend_from_slice(message);
    to.write_all(&whole).await
}

/// What is left to read of a message or key.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `count` bytes.
    pub(crate) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// A number.
    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.bytes(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// Bytes with their length before them.
    pub(crate) fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.bytes(length as usize)
    }

    /// A number of any length that is not negative, without zeros before it.
    pub(crate) fn mpint(&mut self) -> Option<&'a [u8]> {
        let bytes = self.string()?;
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Some(&bytes[zeros..])
    }
}

/// Appends bytes with their length before them.
pub(crate) fn put_string(to: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("keys, signatures and names are far below 4 GiB");
    to.extend_from_slice(&length.to_be_bytes());
    to.extend_from_slice(bytes);
}

/// Appends a number of any length, given by its bytes, the highest first.
pub(crate) fn put_mpint(to: &mut Vec<u8>, bytes: &[u8]) {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let mut number = Vec::with_capacity(bytes.len() + 1);
    if bytes.get(zeros).is_some_and(|first| first & 0x80 != 0) {
        number.push(0);
    }
    number.extend_from_slice(&bytes[zeros..]);
    put_string(to, &number);
}

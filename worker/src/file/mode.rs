//! Symbolic modes as chmod(1) has them: `u+x,g-w,o=rX`.
//!
//! ```text
//! clause[,clause…]   clause = [ugoa]* ( [+-=] [rwxXst]* | [+-=] [ugo] )+
//! ```
//!
//! Without a class all are meant: there is no umask in a build.

use super::FileError;

/// The mode that `symbolic` makes of `mode` (0 to 07777).
///
/// # Errors
/// [`FileError::Mode`].
pub(super) fn apply(symbolic: &str, mode: u32, is_dir: bool) -> Result<u32, FileError> {
    let bad = || FileError::Mode {
        mode: symbolic.to_owned(),
    };
    if let Ok(octal) = u32::from_str_radix(symbolic, 8) {
        return if octal <= 0o7777 { Ok(octal) } else { Err(bad()) };
    }
    let mut mode = mode;
    for clause in symbolic.split(',') {
        let ops = clause.find(['+', '-', '=']).ok_or_else(bad)?;
        let mut classes = 0;
        for class in clause[..ops].chars() {
            classes |= match class {
                'u' => 0o4700,
                'g' => 0o2070,
                'o' => 0o1007,
                'a' => 0o7777,
                _ => return Err(bad()),
            };
        }
        if classes == 0 {
            classes = 0o7777;
        }
        let mut rest = &clause[ops..];
        while let Some(op) = rest.chars().next() {
            let end = rest[1..].find(['+', '-', '=']).map_or(rest.len(), |at| at + 1);
            let bits = permissions(&rest[1..end], mode, is_dir).ok_or_else(bad)? & classes;
            mode = match op {
                '+' => mode | bits,
                '-' => mode & !bits,
                // The sticky bit and, of directories, set-id bits stay unless they are named.
                _ => mode & !(classes & 0o777) & !if is_dir { 0 } else { classes & 0o6000 } | bits,
            };
            rest = &rest[end..];
        }
    }
    Ok(mode & 0o7777)
}

fn permissions(letters: &str, mode: u32, is_dir: bool) -> Option<u32> {
    if let "u" | "g" | "o" = letters {
        let copied = match letters {
            "u" => mode >> 6,
            "g" => mode >> 3,
            _ => mode,
        } & 0o7;
        return Some(copied << 6 | copied << 3 | copied);
    }
    let mut bits = 0;
    for letter in letters.chars() {
        bits |= match letter {
            'r' => 0o444,
            'w' => 0o222,
            'x' => 0o111,
            'X' if is_dir || mode & 0o111 != 0 => 0o111,
            'X' => 0,
            's' => 0o6000,
            't' => 0o1000,
            _ => return None,
        };
    }
    Some(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_chmod_does() {
        for (symbolic, mode, is_dir, wanted) in [
            ("u+x", 0o644, false, 0o744),
            ("+x", 0o644, false, 0o755),
            ("a-w", 0o666, false, 0o444),
            ("go=", 0o777, false, 0o700),
            ("u=rwx,go=rX", 0o600, false, 0o755),
            ("go=rX", 0o600, false, 0o644),
            ("go=rX", 0o600, true, 0o655),
            ("g=u", 0o640, false, 0o660),
            ("u+s", 0o755, false, 0o4755),
            ("g+s", 0o755, true, 0o2755),
            ("+t", 0o777, true, 0o1777),
            ("u-x+w", 0o500, false, 0o600),
            ("0750", 0o644, false, 0o750),
        ] {
            assert_eq!(
                apply(symbolic, mode, is_dir).expect(symbolic),
                wanted,
                "{symbolic}"
            );
        }
        for bad in ["", "x", "u+q", "z+x", "77777", "u"] {
            assert!(apply(bad, 0o644, false).is_err(), "{bad}");
        }
    }
}

//! `--chmod`: octal, or symbolic as chmod(1) has it.

use crate::error::Error;

/// Permissions of copied files.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Those of the source.
    Keep,
    Octal(i32),
    Symbolic(String),
}

/// Reads the value of `--chmod`.
pub(super) fn parse(text: &str) -> Result<Mode, Error> {
    if text.is_empty() {
        return Ok(Mode::Keep);
    }
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return match u32::from_str_radix(text, 8) {
            Ok(bits) if bits <= 0o7777 => Ok(Mode::Octal(bits as i32)),
            _ => Err(Error::invalid(format!(
                "--chmod={text} must be an octal number up to 07777"
            ))),
        };
    }
    if text.split(',').all(is_clause) {
        return Ok(Mode::Symbolic(text.to_owned()));
    }
    Err(Error::invalid(format!(
        "--chmod={text} must be an octal number or like u=rwX,go=rX"
    )))
}

/// `[ugoa]*` and one or more of `[-+=][rwxXstugo]*`.
fn is_clause(clause: &str) -> bool {
    let actions = clause.trim_start_matches(['u', 'g', 'o', 'a']);
    actions.starts_with(['-', '+', '='])
        && actions.chars().all(|c| {
            matches!(
                c,
                '-' | '+' | '=' | 'r' | 'w' | 'x' | 'X' | 's' | 't' | 'u' | 'g' | 'o'
            )
        })
}

#[cfg(test)]
mod tests {
    use super::{Mode, parse};

    #[test]
    fn modes() {
        assert_eq!(parse("").expect("fine"), Mode::Keep);
        assert_eq!(parse("0644").expect("fine"), Mode::Octal(0o644));
        assert_eq!(
            parse("u=rwX,go=rX").expect("fine"),
            Mode::Symbolic("u=rwX,go=rX".into())
        );
        for bad in ["99", "10000", "rw", "u=rq", "u", "+x,", "z+x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}

//! `# syntax=`, `# escape=`, `# check=`: comments at the head of the file that mean something.
//!
//! They end with the first line that is none of them. Names count whatever their case; each may stand
//! once; an unknown name ends them.

use crate::error::Error;
use crate::parse::lines::BOM;

const NAMES: [&str; 3] = ["syntax", "escape", "check"];

/// Reads lines until one is no directive.
#[derive(Debug)]
pub(super) struct Directives {
    comment: &'static str,
    seen: Vec<String>,
    is_done: bool,
}

impl Directives {
    pub(super) fn new(comment: &'static str) -> Self {
        Self {
            comment,
            seen: Vec::new(),
            is_done: false,
        }
    }

    /// Name and value, when the line is a directive.
    pub(super) fn line(&mut self, line: &str) -> Result<Option<(String, String)>, Error> {
        if self.is_done {
            return Ok(None);
        }
        let Some((name, value)) = line.strip_prefix(self.comment).and_then(name_and_value) else {
            self.is_done = true;
            return Ok(None);
        };
        if self.seen.contains(&name) {
            return Err(Error::invalid(format!(
                "only one {name} parser directive can be used"
            )));
        }
        self.seen.push(name.clone());
        Ok(Some((name, value)))
    }
}

fn name_and_value(line: &str) -> Option<(String, String)> {
    let (name, value) = line.trim_start().split_once('=')?;
    let name = name.trim_end().to_lowercase();
    let value = value.trim();
    (NAMES.contains(&name.as_str()) && !value.is_empty()).then(|| (name, value.to_owned()))
}

/// The value of a directive and its line.
pub(crate) fn directive(bytes: &[u8], name: &str) -> Option<(String, i32)> {
    find(bytes, name, "#")
}

/// The frontend a file asks for, by `# syntax=`, `// syntax=` or a JSON member `syntax`, and its line.
pub(crate) fn syntax(bytes: &[u8]) -> Option<(String, i32)> {
    find(bytes, "syntax", "#")
        .or_else(|| find(bytes, "syntax", "//"))
        .or_else(|| {
            let value: serde_json::Value = serde_json::from_slice(body(bytes).0).ok()?;
            Some((value.get("syntax")?.as_str()?.to_owned(), 1))
        })
}

/// The file without byte order mark and `#!` line, and how many lines that was.
fn body(bytes: &[u8]) -> (&[u8], i32) {
    let bytes = bytes.strip_prefix(BOM).unwrap_or(bytes);
    if !bytes.starts_with(b"#!") {
        return (bytes, 0);
    }
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .map_or(bytes.len(), |at| at + 1);
    (&bytes[end..], 1)
}

fn find(bytes: &[u8], wanted: &str, comment: &'static str) -> Option<(String, i32)> {
    let (body, mut number) = body(bytes);
    let mut directives = Directives::new(comment);
    for line in body.split(|byte| *byte == b'\n') {
        number += 1;
        let (name, value) = directives.line(&String::from_utf8_lossy(line)).ok()??;
        if name == wanted {
            return Some((value, number));
        }
    }
    None
}

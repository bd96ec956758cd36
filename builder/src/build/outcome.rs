//! What a build gave, and the words it is closed with.
use super::kept::Kept;
use crate::progress::Summary;
use crate::units::show_bytes;
use oci::Digest;
use std::collections::BTreeMap;
use std::fmt::Write;

/// What a build gave.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// The exporters' answers together, by BuildKit's keys.
    pub response: BTreeMap<String, String>,
    /// The images that were made, one per platform; empty if no output is an image.
    pub images: Vec<BuiltImage>,
    /// One line per output: what went where.
    pub given: Vec<String>,
    /// The figures.
    pub summary: Summary,
    /// What the user should know about how it was built, such as a shared network.
    pub notes: Vec<String>,
    /// Why steps ran that the cache could have served, when that was asked for.
    pub explanation: Option<String>,
    /// What the history is to keep.
    pub kept: Kept,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltImage {
    /// `os/arch[/variant]`.
    pub platform: String,
    /// Digest of its manifest.
    pub digest: Digest,
    /// Bytes of its layers and configuration as they are stored, compressed.
    pub size: u64,
    /// How many layers.
    pub layers: usize,
}

impl Outcome {
    /// What `--iidfile` and `--quiet` give: the digest of the config, or of the index of several platforms.
    pub fn image_id(&self) -> Option<&str> {
        let key = ["containerimage.config.digest", "containerimage.digest"];
        key.iter()
            .find_map(|key| self.response.get(*key))
            .map(String::as_str)
    }

    /// The closing words.
    pub fn closing(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\n{}", self.summary.sentence());
        if let Some(digest) = self.response.get("containerimage.digest") {
            let _ = writeln!(text, "  image   {digest}");
        }
        for image in &self.images {
            let layers = if image.layers == 1 { "layer" } else { "layers" };
            let _ = write!(
                text,
                "  size    {} in {} {layers}",
                show_bytes(image.size),
                image.layers
            );
            match self.images.len() {
                1 => text.push('\n'),
                _ => {
                    let _ = writeln!(text, " for {}", image.platform);
                }
            }
        }
        for line in &self.given {
            let _ = writeln!(text, "  {line}");
        }
        if self.summary.warnings > 0 {
            let warnings = if self.summary.warnings == 1 {
                "warning"
            } else {
                "warnings"
            };
            let _ = writeln!(text, "  {} {warnings}, shown above", self.summary.warnings);
        }
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        if let Some(explanation) = &self.explanation {
            let _ = write!(text, "\n{explanation}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_id_is_the_configs_digest_where_there_is_one() {
        let mut outcome = Outcome::default();
        assert_eq!(outcome.image_id(), None);
        outcome
            .response
            .insert("containerimage.digest".into(), "sha256:m".into());
        assert_eq!(outcome.image_id(), Some("sha256:m"));
        outcome
            .response
            .insert("containerimage.config.digest".into(), "sha256:c".into());
        assert_eq!(outcome.image_id(), Some("sha256:c"));
    }

    #[test]
    fn the_closing_words_hold_the_figures() {
        let image = BuiltImage {
            platform: "linux/amd64".into(),
            digest: Digest::of(b"m"),
            size: 1234,
            layers: 2,
        };
        let outcome = Outcome {
            images: vec![image],
            given: vec!["named   docker.io/library/a:1".into()],
            summary: Summary {
                ran: 1,
                cached: 3,
                ..Summary::default()
            },
            ..Outcome::default()
        };
        let expected = "
1 step ran, 3 came from the cache, 0.0s
  size    1.23kB in 2 layers
  named   docker.io/library/a:1
";
        assert_eq!(outcome.closing(), expected);
    }
}

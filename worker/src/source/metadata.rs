//! What can be said of a source without making a layer of it: which commit a ref names, what a URL gives.
//!
//! ```text
//! SourceOp ─▶ git: ls-remote (and the objects, where they are wanted) | http: HEAD or GET ─▶ SourceMetadata
//! ```
//!
//! Images are resolved by [`Worker::resolve_image`].

use std::{io::Read, sync::Arc, time::SystemTime};

use llb::op::SourceOp;
use solver::{OpContext, OpError};

use super::checksum::{Algorithm, Checksum};
use super::{git::GitOp, http::HttpOp};
use crate::worker::Worker;

/// What is known of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceMetadata {
    /// A git repository.
    Git(GitMetadata),
    /// A file of a URL.
    Http(HttpMetadata),
}

/// A commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GitMetadata {
    /// The object that the ref names: a commit, or a tag object.
    pub object: String,
    /// The ref by its full name, or the commit that was asked for.
    pub reference: String,
    /// The commit, where `object` is a tag.
    pub commit: Option<String>,
    /// The commit's contents as git keeps them; empty unless asked for.
    pub commit_object: Vec<u8>,
    /// The tag's contents as git keeps them; empty unless asked for and there.
    pub tag_object: Vec<u8>,
}

impl GitMetadata {
    /// The committer's time in seconds since 1970, if the commit's contents were asked for.
    #[must_use]
    pub fn committed(&self) -> Option<i64> {
        let header = self.commit_object.split(|byte| *byte == b'\n');
        let line = header
            .take_while(|line| !line.is_empty())
            .find_map(|line| line.strip_prefix(b"committer "))?;
        let mut words = line.rsplit(|byte| *byte == b' ');
        let _zone = words.next()?;
        std::str::from_utf8(words.next()?).ok()?.parse().ok()
    }
}

/// A file of a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpMetadata {
    /// The checksum it was asked for by, else the SHA-256 of its contents.
    pub checksum: Checksum,
    /// What it will be called.
    pub filename: String,
    /// `Last-Modified`.
    pub last_modified: Option<SystemTime>,
    /// The further checksum that was wanted.
    pub wanted: Option<Checksum>,
}

/// What of a source is wanted beside what is always told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extras {
    /// The objects of a commit, as git keeps them.
    pub git_objects: bool,
    /// A checksum of a file with these bytes behind it.
    pub checksum: Option<(Algorithm, Vec<u8>)>,
}

impl Worker {
    /// Finds out what a git or http source is at this moment; `None` for sources of other kinds.
    ///
    /// # Errors
    /// Those of the source itself.
    pub async fn source_metadata(
        self: &Arc<Self>,
        source: &SourceOp,
        extras: Extras,
        ctx: &OpContext,
    ) -> Result<Option<SourceMetadata>, OpError> {
        match source.scheme() {
            "git" => {
                let op = GitOp::new(self.clone(), source)?;
                Ok(Some(SourceMetadata::Git(
                    op.metadata(ctx, extras.git_objects).await?,
                )))
            }
            "http" | "https" => {
                let op = HttpOp::new(self.clone(), source)?;
                Ok(Some(SourceMetadata::Http(
                    op.metadata(ctx, extras.checksum).await?,
                )))
            }
            _ => Ok(None),
        }
    }
}

/// The time of an archive's newest file in seconds since 1970, whatever the archive is packed with; `None` for what is
/// no archive. Reads all of it.
pub fn newest_file(archive: impl Read + Send) -> Option<i64> {
    let plain = cache::layer::decompress(archive).ok()?;
    let mut newest = None;
    for entry in tar::Archive::new(plain).entries().ok()? {
        let entry = entry.ok()?;
        if entry.header().entry_type().is_file() {
            newest = newest.max(i64::try_from(entry.header().mtime().ok()?).ok());
        }
    }
    newest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_has_the_time_of_its_committer() {
        let cases: [(&str, Option<i64>); 4] = [
            (
                "tree 1\nauthor A <a@b> 5 +0100\ncommitter B C <b@c> 1700000000 -0700\n\ntext",
                Some(1_700_000_000),
            ),
            ("tree 1\ncommitter B <b> -7 +0000\n", Some(-7)),
            ("tree 1\n\ncommitter B <b> 7 +0000\n", None),
            ("tree 1\ncommitter B\n\n", None),
        ];
        for (object, expected) in cases {
            let metadata = GitMetadata {
                commit_object: object.into(),
                ..GitMetadata::default()
            };
            assert_eq!(metadata.committed(), expected, "{object:?}");
        }
    }
}

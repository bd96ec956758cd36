//! Lists a context and makes its tree.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use cache::{
    layer::{HeaderDigest, LayerError, TreeIndex},
    stat_cache::{StatCache, StatOrigin},
};
use rayon::prelude::*;
use tree::{ContextFilter, Found, Kind, PatternError, Root, StatId, Timestamp, WalkOptions, walk};

/// What of a directory is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContextOptions {
    /// Only what these take; empty means everything.
    pub include_patterns: Vec<String>,
    /// Nothing that these take (`.dockerignore`).
    pub exclude_patterns: Vec<String>,
    /// Paths that are wanted, with the links along them.
    pub follow_paths: Vec<String>,
    /// Whether no file of the directory is ever written again (see [`Root::kept`]).
    pub is_kept: bool,
    /// Where digests are kept from build to build; none to keep nothing.
    pub stat_cache: Option<PathBuf>,
}

/// A context that could not be listed.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// A pattern cannot be read.
    #[error("invalid pattern of the context: {0}")]
    Pattern(#[from] PatternError),
    /// The directory, or something in it, could not be read.
    #[error(transparent)]
    Tree(#[from] tree::Error),
    /// The listing contradicts itself.
    #[error(transparent)]
    Layer(#[from] LayerError),
}

/// The tree of what `options` want of the directory `dir`. Blocks; works on all cores.
///
/// # Errors
/// [`ContextError`] of every kind. What vanishes while it is listed is left out.
pub fn read_context(dir: &Path, options: &ContextOptions) -> Result<TreeIndex, ContextError> {
    let mut root = Root::open(dir)?;
    if options.is_kept {
        root = root.kept();
    }
    let filter = ContextFilter::of(
        &root,
        &options.include_patterns,
        &options.exclude_patterns,
        &options.follow_paths,
    )?;
    let walked_at = Timestamp::now();
    let (found, known) = rayon::join(
        || walk(&root, &filter, WalkOptions { xattrs: false }),
        || {
            options
                .stat_cache
                .as_deref()
                .map(StatCache::load)
                .unwrap_or_default()
        },
    );
    let mut found = found?;
    let digests = look_up(&found, &known);
    read_xattrs(&root, &mut found, &digests)?;
    let ids: Vec<StatId> = std::iter::once(StatId::default())
        .chain(found.iter().map(|item| item.id))
        .collect();
    let entries = found.into_iter().zip(digests).map(|(item, digest)| {
        let mut entry = item.entry;
        (entry.uid, entry.gid) = (0, 0);
        (entry, digest)
    });
    let origin = StatOrigin {
        ids: Arc::new(ids),
        file: options.stat_cache.clone(),
        // Where nothing is written again, nothing is too young to be known by its state.
        walked_at: match options.is_kept {
            true => Timestamp::from_secs(i64::MAX),
            false => walked_at,
        },
    };
    Ok(TreeIndex::of_context(entries)?.with_origin(origin))
}

fn look_up(found: &[Found], known: &StatCache) -> Vec<Option<HeaderDigest>> {
    let mut near = 0;
    found
        .iter()
        .map(|item| match item.entry.kind {
            Kind::File => known.lookup(&item.entry.path, &item.id, &mut near),
            _ => None,
        })
        .collect()
}

/// Reads the extended attributes that count, but not of files known from last time: those have none.
fn read_xattrs(
    root: &Root,
    found: &mut [Found],
    digests: &[Option<HeaderDigest>],
) -> Result<(), tree::Error> {
    found
        .par_iter_mut()
        .zip(digests)
        .with_min_len(64)
        .try_for_each(|(item, digest)| {
            let has_some = matches!(item.entry.kind, Kind::File | Kind::Dir);
            if digest.is_none() && has_some {
                let mut xattrs = match root.xattrs(&item.entry.path) {
                    Err(error) if error.is_not_found() => return Ok(()),
                    other => other?,
                };
                xattrs.retain(|name, _| {
                    let hidden = name.starts_with(b"security.") || name.starts_with(b"system.");
                    !hidden || name == b"security.capability"
                });
                item.entry.xattrs = xattrs;
            }
            Ok(())
        })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use cache::{
        checksum::{Selector, checksum},
        view::{Contents, View, ViewLayer},
    };

    use super::*;

    fn context(files: &[&str]) -> tempfile::TempDir {
        let temp = tempfile::tempdir().expect("temporary directory");
        for file in files {
            let path = temp.path().join(file);
            fs::create_dir_all(path.parent().expect("beneath the root")).expect("mkdir");
            fs::write(path, file.as_bytes()).expect("write");
        }
        temp
    }

    fn listed(dir: &Path, options: &ContextOptions) -> Vec<String> {
        let tree = read_context(dir, options).expect("reads");
        tree.iter()
            .skip(1)
            .map(|record| String::from_utf8_lossy(record.path_bytes()).into_owned())
            .collect()
    }

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ignore_patterns_shut_out_and_exceptions_let_in() {
        let temp = context(&["a.go", "a.md", "d/x.md", "d/keep.md", "node_modules/p/q", "b/c/d"]);
        for (exclude, wanted) in [
            (
                &["**/*.md", "!d/keep.md", "node_modules"][..],
                &["a.go", "b", "b/c", "b/c/d", "d", "d/keep.md"][..],
            ),
            (&["*", "!b/c"], &["b", "b/c", "b/c/d"]),
            (
                &["b/**"],
                &[
                    "a.go",
                    "a.md",
                    "b",
                    "d",
                    "d/keep.md",
                    "d/x.md",
                    "node_modules",
                    "node_modules/p",
                    "node_modules/p/q",
                ],
            ),
        ] {
            let options = ContextOptions {
                exclude_patterns: strings(exclude),
                ..ContextOptions::default()
            };
            assert_eq!(listed(temp.path(), &options), wanted, "{exclude:?}");
        }
        let options = ContextOptions {
            include_patterns: strings(&["b/*/d", "a.*"]),
            ..ContextOptions::default()
        };
        assert_eq!(
            listed(temp.path(), &options),
            ["a.go", "a.md", "b", "b/c", "b/c/d"]
        );
    }

    #[test]
    fn followed_paths_bring_what_their_links_lead_to() {
        let temp = context(&["real/f", "real/g", "other/h", "z"]);
        symlink("real", temp.path().join("l")).expect("link");
        symlink("/real/f", temp.path().join("abs")).expect("link");
        symlink("loop", temp.path().join("loop")).expect("link");
        for (follow, wanted) in [
            (&["l/f"][..], &["l", "real", "real/f"][..]),
            (&["/abs", "z"], &["abs", "real", "real/f", "z"]),
            (&["a*"], &["abs", "real", "real/f"]),
            (&["loop/x"], &["loop"]),
            (&["none"], &[]),
            (
                &["."],
                &[
                    "abs", "l", "loop", "other", "other/h", "real", "real/f", "real/g", "z",
                ],
            ),
        ] {
            let options = ContextOptions {
                follow_paths: strings(follow),
                ..ContextOptions::default()
            };
            assert_eq!(listed(temp.path(), &options), wanted, "{follow:?}");
        }
    }

    fn view(dir: &Path, options: &ContextOptions) -> View {
        let tree = Arc::new(read_context(dir, options).expect("reads"));
        let root = Root::open(dir).expect("opens");
        let root = if options.is_kept { root.kept() } else { root };
        let contents = Arc::new(Contents::Dir(root));
        View::new(vec![ViewLayer { tree, contents }])
    }

    #[test]
    fn what_is_never_written_again_is_known_at_once() {
        let temp = context(&["a", "d/b"]);
        let kept = tempfile::tempdir().expect("temporary directory");
        for (is_kept, expected) in [(false, 0), (true, 2)] {
            let options = ContextOptions {
                stat_cache: Some(kept.path().join("stat")),
                is_kept,
                ..ContextOptions::default()
            };
            let seen = view(temp.path(), &options);
            checksum(&seen, &[Selector::default()]).expect("reads");
            cache::stat_cache::save(&seen.layers()[0].tree).expect("keeps");
            let again = read_context(temp.path(), &options).expect("reads");
            let known = again
                .iter()
                .filter(|record| again.digest(record.index()).is_some());
            assert_eq!(known.count(), expected, "kept: {is_kept}");
        }
    }

    #[test]
    fn an_unchanged_context_is_not_read_again_and_a_changed_one_is() {
        let temp = context(&["a", "d/b", "d/c"]);
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(100);
        let kept = tempfile::tempdir().expect("temporary directory");
        let options = ContextOptions {
            stat_cache: Some(kept.path().join("stat")),
            ..ContextOptions::default()
        };
        let first = checksum(&view(temp.path(), &options), &[Selector::default()]).expect("reads");
        // ctime cannot be set back: pretend that the walk came later.
        let tree = read_context(temp.path(), &options).expect("reads");
        assert!(
            tree.iter().all(|record| tree.digest(record.index()).is_none()),
            "too young to be kept"
        );
        let mut origin = tree.origin().expect("a context").clone();
        origin.walked_at.secs += 100;
        let tree = Arc::new(tree.with_origin(origin));
        let contents = Arc::new(Contents::Dir(Root::open(temp.path()).expect("opens")));
        checksum(
            &View::new(vec![ViewLayer {
                tree: tree.clone(),
                contents,
            }]),
            &[],
        )
        .expect("reads");
        cache::stat_cache::save(&tree).expect("keeps");
        let again = read_context(temp.path(), &options).expect("reads");
        let known = again
            .iter()
            .filter(|record| again.digest(record.index()).is_some())
            .count();
        assert_eq!(known, 3);
        assert_eq!(checksum(&view(temp.path(), &options), &[]).expect("reads"), first);
        fs::write(temp.path().join("d/b"), "D/B").expect("write");
        let file = fs::File::options()
            .write(true)
            .open(temp.path().join("d/b"))
            .expect("opens");
        file.set_modified(old).expect("sets the time");
        assert_ne!(checksum(&view(temp.path(), &options), &[]).expect("reads"), first);
    }

    #[test]
    fn a_file_that_changes_after_the_listing_is_an_error() {
        let temp = context(&["a"]);
        let view = view(temp.path(), &ContextOptions::default());
        fs::write(temp.path().join("a"), "b").expect("write");
        let error = checksum(&view, &[]).expect_err("changed");
        assert!(matches!(error, LayerError::ChangedSince { .. }), "{error}");
    }
}

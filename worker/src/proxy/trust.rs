//! Lets the programs of an image believe the proxy's certificate while their step runs.
//!
//! ```text
//! before: the image's bundle + certificate ─▶ the step's upper directory, with the folders that lead there
//! after:  as we left it ─▶ taken out, so that the layer has no trace       written by the step ─▶ our part cut out
//! ```
//!
//! A bind mount would be simpler, but what installs certificates (`update-ca-certificates`) renames a new bundle over
//! the old one, and no file is renamed over a mount point.
//!
//! Differs: BuildKit leaves the bundle behind with a new time, so that each such step adds it to its layer.

use std::{
    fmt,
    io::{Read as _, Write as _},
    path::Path,
};

use cache::view::View;
use solver::OpError;
use tree::{Entry, Kind, Root, RootPath, StatId};

/// Where images keep what they believe; the first that is there counts.
const BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Bytes of a bundle at most.
const MAX_BUNDLE: u64 = 10 << 20;
/// Around our part of a bundle.
const BEGIN: &str = "\n# buildkit proxy CA begin\n";
const END: &str = "# buildkit proxy CA end\n";

/// Why a certificate could not be put in or taken out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustError {
    /// As for the files.
    #[error(transparent)]
    Tree(#[from] tree::Error),
    /// As for reading the image.
    #[error(transparent)]
    Layer(#[from] cache::layer::LayerError),
    /// As for contents.
    #[error("{what} {}", path.display())]
    Io {
        /// The kernel's word.
        source: std::io::Error,
        /// What was tried.
        what: &'static str,
        /// On what.
        path: RootPath,
    },
    /// Our part would be looked for in something enormous.
    #[error("{} has grown too large for the certificate of the proxy to be taken out of it", .0.display())]
    TooLarge(RootPath),
}

impl TrustError {
    fn io(what: &'static str, path: &RootPath) -> impl FnOnce(std::io::Error) -> TrustError {
        let path = path.clone();
        move |source| TrustError::Io { source, what, path }
    }
}

/// A bundle with our certificate in it, in the upper directory of a step. [`Trusted::take_out`] must be called when the
/// step is over, before anything of the directory is kept.
pub(crate) struct Trusted {
    upper: Root,
    file: Put,
    /// From the outside in.
    folders: Vec<Put>,
    added: Vec<u8>,
}

impl fmt::Debug for Trusted {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("Trusted").field(&self.file.path).finish()
    }
}

/// Something we put into the upper directory, as we left it.
struct Put {
    path: RootPath,
    state: StatId,
}

impl Put {
    fn of(upper: &Root, path: RootPath) -> Result<Put, tree::Error> {
        let state = upper.metadata(&path)?.id;
        Ok(Put { path, state })
    }

    /// Whether nobody has touched it since.
    fn is_untouched(&self, upper: &Root) -> bool {
        upper
            .metadata(&self.path)
            .is_ok_and(|found| found.id == self.state)
    }
}

impl Trusted {
    /// Adds `certificate` to what the image `view` believes. `upper` is the new upper directory of its root. `None` for an
    /// image that has no bundle.
    ///
    /// # Errors
    /// The bundle cannot be read or written, or is larger than 10 MiB.
    pub(crate) fn put(view: &View, upper: &Path, certificate: &str) -> Result<Option<Trusted>, OpError> {
        for name in BUNDLES {
            let path = RootPath::clean(name).map_err(OpError::internal)?;
            let Some(bytes) = view.read_small(&path, MAX_BUNDLE).map_err(OpError::environment)? else {
                continue;
            };
            let real = view.resolve(&path, true).map_err(OpError::environment)?.path;
            let trusted = Trusted::write(view, upper, real, bytes, certificate);
            return trusted.map(Some).map_err(OpError::environment);
        }
        Ok(None)
    }

    fn write(
        view: &View,
        upper: &Path,
        path: RootPath,
        mut bytes: Vec<u8>,
        certificate: &str,
    ) -> Result<Trusted, TrustError> {
        let upper = Root::open(upper)?;
        let added = format!("{BEGIN}{certificate}{END}").into_bytes();
        bytes.extend_from_slice(&added);
        let mut leading: Vec<RootPath> = Vec::new();
        let mut next = path.parent();
        while let Some(folder) = next.filter(|folder| !folder.is_root()) {
            next = folder.parent();
            leading.push(folder);
        }
        let mut made: Vec<RootPath> = Vec::new();
        for folder in leading.into_iter().rev() {
            if upper.try_metadata(&folder)?.is_none() {
                upper.create_dir(&folder, 0o700)?;
                made.push(folder);
            }
        }
        let mut file = upper.create_file(&path, 0o600)?;
        file.write_all(&bytes).map_err(TrustError::io("write", &path))?;
        drop(file);
        // Inner ones first: what is put into a folder changes it.
        for path in std::iter::once(&path).chain(made.iter().rev()) {
            if let Some(node) = view.lookup(path) {
                take_after(&upper, path, &view.entry(&node)?)?;
            }
        }
        let folders = made.into_iter().map(|folder| Put::of(&upper, folder));
        Ok(Trusted {
            folders: folders.collect::<Result<_, _>>()?,
            file: Put::of(&upper, path)?,
            upper,
            added,
        })
    }

    /// Takes the certificate out again. Blocks.
    ///
    /// # Errors
    /// The bundle cannot be read, written or removed; the layer must not be kept then.
    pub(crate) fn take_out(self) -> Result<(), TrustError> {
        let upper = &self.upper;
        let untouched = |put: &Put| put.is_untouched(upper);
        let folders: Vec<bool> = self.folders.iter().map(untouched).collect();
        if !self.file.is_untouched(upper) {
            return cut_out(upper, &self.file.path, &self.added);
        }
        upper.remove_file(&self.file.path)?;
        for (folder, is_untouched) in self.folders.iter().zip(folders).rev() {
            // A folder that something was put into, or that was changed, stays, and with it those around it.
            if !is_untouched || !upper.read_dir(&folder.path)?.is_empty() {
                break;
            }
            upper.remove_all(&folder.path)?;
        }
        Ok(())
    }
}

/// Cuts our part out of a file the step has written; its attributes stay. What is no file any more has no part of ours,
/// and a link is not followed, nor one on the way.
fn cut_out(upper: &Root, path: &RootPath, added: &[u8]) -> Result<(), TrustError> {
    let Ok((mut file, found)) = upper.open_file(path) else {
        return Ok(());
    };
    if found.id.size > 2 * MAX_BUNDLE {
        return Err(TrustError::TooLarge(path.clone()));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)
        .map_err(TrustError::io("read", path))?;
    let Some(at) = bytes.windows(added.len()).position(|window| window == added) else {
        return Ok(());
    };
    bytes.drain(at..at + added.len());
    let Some(entry) = upper.entry(path)? else {
        return Ok(());
    };
    upper.remove_file(path)?;
    let mut file = upper.create_file(path, 0o600)?;
    file.write_all(&bytes).map_err(TrustError::io("write", path))?;
    drop(file);
    take_after(upper, path, &entry)?;
    Ok(())
}

/// Gives what we made the attributes of what it stands for.
fn take_after(upper: &Root, path: &RootPath, entry: &Entry) -> Result<(), tree::Error> {
    // With one id only everything is root's anyway; extended attributes a user may not set are lost as in any copy.
    drop(upper.set_owner(path, entry.uid, entry.gid));
    for (name, value) in &entry.xattrs {
        drop(upper.set_xattr(path, name, value));
    }
    if entry.kind != Kind::Symlink {
        upper.set_mode(path, entry.mode)?;
    }
    upper.set_mtime(path, entry.mtime)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    const OURS: &str = "\n# buildkit proxy CA begin\nX\n# buildkit proxy CA end\n";

    #[test]
    fn only_our_part_is_cut_out() {
        let place = tempfile::tempdir().expect("a folder");
        let upper = Root::open(place.path()).expect("a root");
        let path = RootPath::clean("bundle").expect("a path");
        let real = place.path().join("bundle");
        for (before, after) in [
            (format!("A\n{OURS}"), "A\n".to_owned()),
            (format!("A\n{OURS}B\n"), "A\nB\n".to_owned()),
            ("A\n".to_owned(), "A\n".to_owned()),
            (OURS.replace('X', "Y"), OURS.replace('X', "Y")),
        ] {
            fs::write(&real, &before).expect("written");
            fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).expect("a mode");
            let time = tree::Timestamp { secs: 1000, nanos: 5 };
            upper.set_mtime(&path, time).expect("a time");
            cut_out(&upper, &path, OURS.as_bytes()).expect("cut out");
            assert_eq!(fs::read_to_string(&real).expect("read"), after);
            let meta = fs::metadata(&real).expect("there");
            assert_eq!((meta.mtime(), meta.mode() & 0o7777), (1000, 0o640));
        }
    }

    #[test]
    fn nothing_outside_is_touched() {
        let place = tempfile::tempdir().expect("a folder");
        let outside = place.path().join("outside");
        fs::create_dir_all(place.path().join("upper")).expect("a folder");
        fs::create_dir(&outside).expect("a folder");
        fs::write(outside.join("bundle"), OURS).expect("written");
        std::os::unix::fs::symlink("../outside", place.path().join("upper/etc")).expect("a link");
        std::os::unix::fs::symlink("../outside/bundle", place.path().join("upper/direct")).expect("a link");
        let upper = Root::open(&place.path().join("upper")).expect("a root");
        for path in ["etc/bundle", "direct", "nothing"] {
            let path = RootPath::clean(path).expect("a path");
            cut_out(&upper, &path, OURS.as_bytes()).expect("nothing to do");
        }
        assert_eq!(fs::read_to_string(outside.join("bundle")).expect("read"), OURS);
    }
}

//! A directory for one test, removed when the test ends.

use std::path::PathBuf;

use crate::{Root, RootPath};

/// A fresh directory under the system's temporary one.
pub(crate) struct TempRoot(PathBuf);

impl TempRoot {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tree-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("the temporary directory is writable");
        TempRoot(path)
    }

    pub(crate) fn root(&self) -> Root {
        Root::open(&self.0).expect("just created")
    }
}

impl Drop for TempRoot {
    fn drop(&mut self) {
        // A leftover of a test is no reason to fail it.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// A path literal.
pub(crate) fn path(text: &str) -> RootPath {
    RootPath::clean(text).expect("a test's path is clean")
}

//! A filesystem result that is held: a stack of layers, each known in one or more forms.
//!
//! ```text
//! ImmutableRef ─▶ layers, bottom first ─▶ Layer ─┬─ tree   (entries)
//!      │                                         ├─ tar    (blobs/sha256/<diff id>)
//!      └─ parent                                 ├─ blob   (packed variants, here or at their origin)
//!                                                └─ dir    (layers/<id>/fs)
//! ```
//!
//! Forms are made by `forms`, at most once, when something needs them. A ref of no layers is scratch.
use crate::{
    Cache,
    layer::TreeIndex,
    view::{Contents, View},
};
use oci::{ChainId, DiffId};
use parking_lot::Mutex;
use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
    time::SystemTime,
};

/// The name of a ref within its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RefId(pub(crate) i64);

/// The name of a layer within its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId(pub(crate) i64);

impl std::fmt::Display for RefId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a record is, in BuildKit's words (`UsageRecord.RecordType`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKind {
    /// The result of a step, or an image's layer.
    #[default]
    Regular,
    /// Made by the builder for itself.
    Internal,
    /// Made for a frontend.
    Frontend,
    /// A directory of the client.
    SourceLocal,
    /// A git checkout.
    SourceGitCheckout,
    /// The directory of a cache mount.
    ExecCacheMount,
}

impl RecordKind {
    /// The word on the wire and in filters.
    pub fn as_str(self) -> &'static str {
        match self {
            RecordKind::Regular => "regular",
            RecordKind::Internal => "internal",
            RecordKind::Frontend => "frontend",
            RecordKind::SourceLocal => "source.local",
            RecordKind::SourceGitCheckout => "source.git.checkout",
            RecordKind::ExecCacheMount => "exec.cachemount",
        }
    }

    /// The kind of a word; unknown ones are regular.
    pub fn parse(text: &str) -> RecordKind {
        match text {
            "internal" => RecordKind::Internal,
            "frontend" => RecordKind::Frontend,
            "source.local" => RecordKind::SourceLocal,
            "source.git.checkout" => RecordKind::SourceGitCheckout,
            "exec.cachemount" => RecordKind::ExecCacheMount,
            _ => RecordKind::Regular,
        }
    }
}

/// What is said of a record when it is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordInfo {
    /// What it is.
    pub kind: RecordKind,
    /// For people: `mount / from exec /bin/sh -c …`.
    pub description: String,
}

impl RecordInfo {
    /// A regular record.
    pub fn new(description: impl Into<String>) -> RecordInfo {
        RecordInfo {
            kind: RecordKind::Regular,
            description: description.into(),
        }
    }
}

/// One change set. Held by the refs made of it.
pub struct Layer {
    pub(crate) id: LayerId,
    pub(crate) created: i64,
    pub(crate) state: Mutex<LayerState>,
    /// Held while a form is being made, so that it is made once.
    pub(crate) making: tokio::sync::Mutex<()>,
}

/// What this process knows of a layer's forms.
#[derive(Default)]
pub(crate) struct LayerState {
    pub(crate) diff_id: Option<DiffId>,
    pub(crate) readable: Option<(Arc<TreeIndex>, Arc<Contents>)>,
    pub(crate) has_dir: bool,
    /// The user's directory, for a context read in place.
    pub(crate) external: Option<PathBuf>,
    /// What keeps that directory as it is.
    pub(crate) _hold: Option<Arc<dyn std::any::Any + Send + Sync>>,
    /// A copy of that directory, where a step had to have one.
    pub(crate) own_dir: Option<OwnDir>,
}

/// A directory that goes with its layer.
pub(crate) struct OwnDir(pub(crate) PathBuf);

impl Drop for OwnDir {
    fn drop(&mut self) {
        // What stays is removed when this process is found dead.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Layer({})", self.id.0)
    }
}

impl Layer {
    /// Its name within the store.
    pub fn id(&self) -> LayerId {
        self.id
    }

    /// The digest of its plain tar, once that has been made.
    pub fn diff_id(&self) -> Option<DiffId> {
        self.state.lock().diff_id
    }

    /// When it was made.
    pub fn created(&self) -> SystemTime {
        crate::clock::time(self.created)
    }

    /// The directory of the user it is read from in place, if it is such a layer.
    pub fn external(&self) -> Option<PathBuf> {
        self.state.lock().external.clone()
    }
}

/// A filesystem result. Cheap to clone; gc leaves it alone while one is held.
#[derive(Clone)]
pub struct ImmutableRef {
    pub(crate) inner: Arc<RefInner>,
}

pub(crate) struct RefInner {
    pub(crate) cache: Cache,
    pub(crate) id: Option<RefId>,
    pub(crate) parent: Option<ImmutableRef>,
    pub(crate) layers: Vec<Arc<Layer>>,
    pub(crate) info: RecordInfo,
    pub(crate) created: i64,
    pub(crate) view: Mutex<Option<View>>,
    /// Nobody is to find it once it is let go.
    pub(crate) is_passing: AtomicBool,
}

impl Drop for RefInner {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.cache.let_go(id);
            if *self.is_passing.get_mut() {
                self.cache.forget(id);
            }
        }
    }
}

impl std::fmt::Debug for ImmutableRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.inner.id {
            Some(id) => write!(f, "ImmutableRef({id})"),
            None => f.write_str("ImmutableRef(scratch)"),
        }
    }
}

impl PartialEq for ImmutableRef {
    fn eq(&self, other: &ImmutableRef) -> bool {
        self.inner.id == other.inner.id
    }
}

impl ImmutableRef {
    /// Its name within the store; scratch has none.
    pub fn id(&self) -> Option<RefId> {
        self.inner.id
    }

    /// Whether it has no layers.
    pub fn is_scratch(&self) -> bool {
        self.inner.layers.is_empty()
    }

    /// Its layers, the lowest first.
    pub fn layers(&self) -> &[Arc<Layer>] {
        &self.inner.layers
    }

    /// The ref beneath the topmost layer; `None` for scratch.
    pub fn parent(&self) -> Option<&ImmutableRef> {
        self.inner.parent.as_ref()
    }

    /// What was said of it.
    pub fn info(&self) -> &RecordInfo {
        &self.inner.info
    }

    /// When it was made.
    pub fn created(&self) -> SystemTime {
        crate::clock::time(self.inner.created)
    }

    /// The identity of its stack of layers, once all their diff ids are known; `None` for scratch too.
    pub fn chain_id(&self) -> Option<ChainId> {
        let diff_ids: Option<Vec<DiffId>> = self.inner.layers.iter().map(|layer| layer.diff_id()).collect();
        ChainId::of(&diff_ids?)
    }

    /// The store it is in.
    pub fn cache(&self) -> &Cache {
        &self.inner.cache
    }

    /// The ref of its lowest `count` layers.
    ///
    /// # Panics
    /// For more layers than it has.
    pub fn ancestor(&self, count: usize) -> ImmutableRef {
        let mut found = self.clone();
        assert!(count <= found.layers().len(), "an ancestor has no more layers");
        while found.layers().len() > count {
            found = found.parent().cloned().expect("a ref with layers has a parent");
        }
        found
    }
}

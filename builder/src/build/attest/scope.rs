//! What each frontend of a build was asked, and what it looked at before it answered.
//!
//! ```text
//! build (what the client asked) ─▶ dockerfile.v0 ─▶ gateway.v0 (# syntax=) ─▶ …
//!                                     ├─ images it resolved
//!                                     └─ definitions it had solved: the Dockerfile, the ignore file
//! ```
//!
//! A result states the request of the frontend that made it, and the client's where that is another. It was made from
//! its own definition, and from all its frontend looked at that is no result itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use llb::{Definition, Graph};
use oci::Platform;
use parking_lot::Mutex;

use super::capture::{Capture, ImageSource, Pins};

/// The most a frontend's scope remembers of one kind; what is more makes the materials incomplete.
const MAX_SEEN: usize = 10_000;

/// What a frontend was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    /// Its name; the client's own frontend has none.
    pub(crate) frontend: String,
    /// What it was told.
    pub(crate) attributes: BTreeMap<String, String>,
}

/// One frontend of a build; the outermost is the client.
#[derive(Debug)]
pub(crate) struct Scope {
    request: Option<Request>,
    root: Option<Request>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    images: Vec<ImageSource>,
    /// Solved definitions by the id of their result; what has no id is no result.
    solved: BTreeMap<String, Arc<Graph>>,
    loads: Vec<Arc<Graph>>,
    inner: Vec<Arc<Scope>>,
    is_full: bool,
}

impl Scope {
    /// The outermost scope of a build.
    pub(crate) fn outermost(request: Request) -> Arc<Scope> {
        let is_empty = request == Request::default();
        Arc::new(Scope {
            request: None,
            root: (!is_empty).then_some(request),
            seen: Mutex::default(),
        })
    }

    /// The scope of a frontend that is asked from this one.
    pub(crate) fn inner(&self, request: Request) -> Arc<Scope> {
        let inner = Arc::new(Scope {
            root: self.root.clone().or_else(|| self.request.clone()),
            request: Some(request),
            seen: Mutex::default(),
        });
        let mut seen = self.seen.lock();
        if seen.has_room() {
            seen.inner.push(inner.clone());
        }
        inner
    }

    /// Notes an image that was looked up.
    pub(crate) fn saw_image(&self, image: ImageSource) {
        let mut seen = self.seen.lock();
        if !seen.images.contains(&image) && seen.has_room() {
            seen.images.push(image);
        }
    }

    /// Notes a definition that was solved; `id` names its result, if it may become one of the build.
    pub(crate) fn saw(&self, id: Option<&str>, definition: &Definition) {
        // One that was solved is one that can be read.
        let Ok(graph) = definition.to_graph() else { return };
        let mut seen = self.seen.lock();
        match id {
            Some(id) if seen.solved.contains_key(id) => {}
            _ if !seen.has_room() => {}
            Some(id) => {
                seen.solved.insert(id.to_owned(), Arc::new(graph));
            }
            None => seen.loads.push(Arc::new(graph)),
        }
    }

    /// What the frontend was asked; `None` for the client's own.
    pub(super) fn request(&self) -> Option<&Request> {
        self.request.as_ref()
    }

    /// What the client asked.
    pub(super) fn root(&self) -> Option<&Request> {
        self.root.as_ref()
    }

    /// What a result of this scope was made from. `results` are the ids of all of the build.
    pub(super) fn capture(&self, graph: &Graph, results: &BTreeSet<String>, of: &Wanted<'_>) -> Capture {
        let mut capture = Capture::of(graph, of.pins);
        let mut images = Vec::new();
        self.collect(&mut capture, &mut images, results, of.pins);
        for image in of.own(images) {
            capture.image(image);
        }
        capture.settle();
        capture
    }

    fn collect(
        &self,
        capture: &mut Capture,
        images: &mut Vec<ImageSource>,
        results: &BTreeSet<String>,
        pins: &Pins,
    ) {
        let (graphs, inner) = {
            let seen = self.seen.lock();
            images.extend(seen.images.iter().cloned());
            capture.is_incomplete |= seen.is_full;
            let solved = seen.solved.iter().filter(|(id, _)| !results.contains(*id));
            let graphs = solved.map(|(_, graph)| graph.clone());
            let graphs: Vec<_> = graphs.chain(seen.loads.iter().cloned()).collect();
            (graphs, seen.inner.clone())
        };
        for graph in graphs {
            capture.merge(Capture::of(&graph, pins));
        }
        for scope in inner {
            scope.collect(capture, images, results, pins);
        }
    }
}

impl Seen {
    fn has_room(&mut self) -> bool {
        let count = self.images.len() + self.solved.len() + self.loads.len() + self.inner.len();
        self.is_full |= count >= MAX_SEEN;
        count < MAX_SEEN
    }
}

/// Which result of a build is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) pins: &'a Pins,
    /// Its platform; `None` if there is but one result without a platform.
    pub(super) platform: Option<&'a Platform>,
    /// Those of all results.
    pub(super) platforms: &'a [Platform],
}

impl Wanted<'_> {
    /// Of images that were looked up for each platform, those of this one.
    fn own(&self, images: Vec<ImageSource>) -> Vec<ImageSource> {
        let Some(own) = self.platform else {
            return images;
        };
        let of_platform = |reference: &str, wanted: &Platform| {
            let mut same = images.iter().filter(|image| image.reference == reference);
            same.any(|image| {
                image
                    .platform
                    .as_ref()
                    .is_some_and(|have| have.clone().normalize() == wanted.clone().normalize())
            })
        };
        let is_of_each: BTreeSet<String> = images
            .iter()
            .map(|image| &image.reference)
            .filter(|reference| self.platforms.iter().all(|wanted| of_platform(reference, wanted)))
            .cloned()
            .collect();
        let fits = |image: &ImageSource| match &image.platform {
            Some(platform) if is_of_each.contains(&image.reference) => {
                (&platform.os, &platform.architecture) == (&own.os, &own.architecture)
            }
            _ => true,
        };
        images.into_iter().filter(fits).collect()
    }
}

//! What a result was made from.
//!
//! | op | what is noted |
//! |---|---|
//! | image, layout | reference, platform, digest |
//! | git, http | address (user info masked), commit or digest; secrets and agents it may use |
//! | local | name |
//! | exec | secrets, ssh agents, whether it had a network; by a proxy, what it fetched |
//!
//! A source whose digest nobody found out (the cache had an answer further on and the op was never asked) makes the
//! materials incomplete.

use std::collections::BTreeMap;

use llb::Graph;
use llb::attr;
use llb::op::{ExecOp, MountKind, NetMode, Op, SourceOp};
use oci::{Digest, Platform, Reference};
use solver::StepReport;
use worker::Session;
pub(crate) use worker::proxy::masked;
use worker::proxy::{self, Captures, Incomplete};

/// What was found out while a build ran.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pins {
    /// What sources were found to be, by vertex.
    found: BTreeMap<Digest, String>,
    /// What steps asked the outside for, if they are kept to a proxy.
    requests: Option<Captures>,
}

/// A request of a step whose answer is no material.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnknownRequest {
    /// The step.
    pub(crate) vertex: Digest,
    /// Its command.
    pub(crate) command: String,
    pub(crate) request: Incomplete,
}

/// An image and what it was found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageSource {
    pub(crate) reference: String,
    pub(crate) platform: Option<Platform>,
    pub(crate) digest: String,
    /// Of a layout, not of a registry.
    pub(crate) is_local: bool,
}

/// What a result was made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Capture {
    pub(crate) images: Vec<ImageSource>,
    /// Blobs by reference, and whether they are of a layout of the client, to digest.
    pub(crate) blobs: BTreeMap<(String, bool), String>,
    /// `remote#ref` to commit.
    pub(crate) git: BTreeMap<String, String>,
    /// Address to digest.
    pub(crate) http: BTreeMap<String, String>,
    pub(crate) locals: Vec<String>,
    /// Ids, and whether each may be missing.
    pub(crate) secrets: BTreeMap<String, bool>,
    /// The same of ssh agents.
    pub(crate) ssh: BTreeMap<String, bool>,
    pub(crate) has_network: bool,
    /// Steps were kept to a proxy.
    pub(crate) is_proxied: bool,
    pub(crate) unknown_requests: Vec<UnknownRequest>,
    pub(crate) is_incomplete: bool,
}

/// What is known of a build so far.
pub(crate) fn pins(report: &[StepReport], session: &Session) -> Pins {
    let pinned = report.iter().filter_map(|step| {
        let pin = step.pin.clone()?;
        Some((step.vertex.digest, pin))
    });
    Pins {
        found: pinned.collect(),
        requests: session.proxy().map(|proxied| proxied.captures.clone()),
    }
}

impl Capture {
    /// What the result of `graph` was made from.
    pub(crate) fn of(graph: &Graph, pins: &Pins) -> Capture {
        let mut capture = Capture::default();
        for vertex in &graph.vertices {
            match &vertex.op {
                Op::Source(source) => {
                    let pin = pins.found.get(&vertex.digest).map(String::as_str);
                    capture.source(source, vertex.platform.as_ref(), pin);
                }
                Op::Exec(exec) => {
                    capture.exec(exec);
                    if let Some(requests) = pins.requests.as_ref().filter(|_| exec.network != NetMode::None) {
                        capture.proxied(vertex.digest, exec, requests.of(&vertex.digest).as_deref());
                    }
                }
                // What it solved is not known here.
                Op::Build(_) => capture.is_incomplete = true,
                Op::File(_) | Op::Merge(_) | Op::Diff(_) | Op::Passthrough(_) => {}
            }
        }
        capture
    }

    fn source(&mut self, source: &SourceOp, platform: Option<&Platform>, pin: Option<&str>) {
        if source.scheme() == "local" {
            self.local(source.rest().to_owned());
            return;
        }
        let Some(pin) = pin.map(str::to_owned) else {
            self.is_incomplete = true;
            return;
        };
        match source.scheme() {
            "docker-image" | "oci-layout" => self.image(ImageSource {
                reference: source.rest().to_owned(),
                platform: platform.cloned(),
                digest: pin,
                is_local: source.scheme() == "oci-layout",
            }),
            "docker-image+blob" | "oci-layout+blob" => {
                let is_local = source.scheme() == "oci-layout+blob";
                let named = (source.rest().to_owned(), is_local);
                self.blobs.entry(named).or_insert(pin);
            }
            "git" => {
                self.git.entry(masked(&git_address(source))).or_insert(pin);
                self.git_access(source);
            }
            "http" | "https" => {
                self.http.entry(masked(&source.identifier)).or_insert(pin);
            }
            _ => self.is_incomplete = true,
        }
    }

    fn git_access(&mut self, source: &SourceOp) {
        for name in [attr::GIT_AUTH_TOKEN_SECRET, attr::GIT_AUTH_HEADER_SECRET] {
            if let Some(id) = source.attr(name).filter(|id| !id.is_empty()) {
                note(&mut self.secrets, id, true);
            }
        }
        if let Some(id) = source.attr(attr::GIT_MOUNT_SSH_SOCK).filter(|id| !id.is_empty()) {
            note(&mut self.ssh, id, true);
        }
    }

    fn exec(&mut self, exec: &ExecOp) {
        for mount in &exec.mounts {
            match &mount.kind {
                MountKind::Secret(secret) => note(&mut self.secrets, &secret.id, secret.optional),
                MountKind::Ssh(ssh) if ssh.id.is_empty() => note(&mut self.ssh, "default", ssh.optional),
                MountKind::Ssh(ssh) => note(&mut self.ssh, &ssh.id, ssh.optional),
                MountKind::Bind | MountKind::Cache(_) | MountKind::Tmpfs { .. } => {}
            }
        }
        for secret in &exec.secret_env {
            note(&mut self.secrets, &secret.id, secret.optional);
        }
        self.has_network |= exec.network != NetMode::None;
    }

    /// Adds what a step that was kept to a proxy fetched.
    /// Differs: what a step of the cache once fetched is not known, and that is said; BuildKit calls it complete.
    fn proxied(&mut self, vertex: Digest, exec: &ExecOp, seen: Option<&proxy::Capture>) {
        self.is_proxied = true;
        let Some(seen) = seen else {
            self.is_incomplete = true;
            return;
        };
        for material in seen.materials() {
            let digest = material.digest.to_string();
            self.http.entry(material.address).or_insert(digest);
        }
        for request in seen.unknown() {
            self.is_incomplete = true;
            self.unknown_requests.push(UnknownRequest {
                vertex,
                command: exec.meta.args.join(" "),
                request,
            });
        }
    }

    /// Adds an image, unless it is there.
    pub(crate) fn image(&mut self, image: ImageSource) {
        let is_same = |known: &ImageSource| {
            let is_same_platform = match (&known.platform, &image.platform) {
                (Some(a), Some(b)) => {
                    (&a.os, &a.architecture, &a.variant, &a.os_version)
                        == (&b.os, &b.architecture, &b.variant, &b.os_version)
                }
                (a, b) => a == b,
            };
            known.reference == image.reference && known.is_local == image.is_local && is_same_platform
        };
        if !self.images.iter().any(is_same) {
            self.images.push(image);
        }
    }

    fn local(&mut self, name: String) {
        if !self.locals.contains(&name) {
            self.locals.push(name);
        }
    }

    /// Adds what something else was made from.
    pub(crate) fn merge(&mut self, other: Capture) {
        other.images.into_iter().for_each(|image| self.image(image));
        other.locals.into_iter().for_each(|name| self.local(name));
        self.blobs.extend(other.blobs);
        for (mine, theirs) in [(&mut self.git, other.git), (&mut self.http, other.http)] {
            for (address, pin) in theirs {
                mine.entry(address).or_insert(pin);
            }
        }
        for (mine, theirs) in [(&mut self.secrets, other.secrets), (&mut self.ssh, other.ssh)] {
            for (id, is_optional) in theirs {
                note(mine, &id, is_optional);
            }
        }
        self.has_network |= other.has_network;
        self.is_proxied |= other.is_proxied;
        for unknown in other.unknown_requests {
            if !self.unknown_requests.contains(&unknown) {
                self.unknown_requests.push(unknown);
            }
        }
        self.is_incomplete |= other.is_incomplete;
    }

    /// Leaves out images by digest that are there by tag as well, and sorts the rest.
    pub(crate) fn settle(&mut self) {
        let parsed = |image: &ImageSource| {
            let reference = Reference::parse_normalized(&image.reference)
                .ok()?
                .with_default_tag();
            let name = format!("{}:{}", reference.name(), reference.tag().unwrap_or("latest"));
            Some((name, reference.digest().is_some()))
        };
        let tagged: Vec<String> = self
            .images
            .iter()
            .filter_map(parsed)
            .filter(|(_, has_digest)| !has_digest)
            .map(|(name, _)| name)
            .collect();
        self.images.retain(|image| match parsed(image) {
            Some((name, true)) => !tagged.contains(&name),
            _ => true,
        });
        self.images.sort_by(|a, b| a.reference.cmp(&b.reference));
        self.locals.sort();
        self.unknown_requests.sort_by(|a, b| {
            let key = |one: &UnknownRequest| {
                (
                    one.vertex,
                    one.request.method.clone(),
                    one.request.address.clone(),
                )
            };
            key(a).cmp(&key(b))
        });
    }
}

/// Notes an id; needed by one, it is not optional.
fn note(ids: &mut BTreeMap<String, bool>, id: &str, is_optional: bool) {
    let known = ids.entry(id.to_owned()).or_insert(is_optional);
    *known &= is_optional;
}

/// `remote#ref` of a git source.
fn git_address(source: &SourceOp) -> String {
    let (place, fragment) = source.rest().split_once('#').unwrap_or((source.rest(), ""));
    let reference = fragment.split(':').next().unwrap_or_default();
    let remote = match source.attr(attr::GIT_FULL_URL) {
        Some(full) => full.split('#').next().unwrap_or_default().to_owned(),
        None => format!("https://{place}"),
    };
    match reference {
        "" => remote,
        reference => format!("{remote}#{reference}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_by_tag_stands_for_the_same_by_digest() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let image = |reference: String| ImageSource {
            reference,
            platform: Some(Platform::new("linux", "amd64")),
            digest: digest.clone(),
            is_local: false,
        };
        let mut capture = Capture::default();
        for reference in [
            format!("docker.io/library/b:1@{digest}"),
            format!("docker.io/library/a:latest@{digest}"),
            "docker.io/library/a:latest".to_owned(),
            "docker.io/library/a:latest".to_owned(),
        ] {
            capture.image(image(reference));
        }
        capture.settle();
        let left: Vec<_> = capture.images.iter().map(|one| one.reference.as_str()).collect();
        let by_digest = format!("docker.io/library/b:1@{digest}");
        assert_eq!(left, ["docker.io/library/a:latest", by_digest.as_str()]);
    }

    #[test]
    fn what_one_step_needs_is_not_optional() {
        let mut capture = Capture::default();
        let other = |is_optional| Capture {
            secrets: BTreeMap::from([("id".to_owned(), is_optional)]),
            ..Capture::default()
        };
        capture.merge(other(true));
        assert!(capture.secrets["id"]);
        capture.merge(other(false));
        capture.merge(other(true));
        assert!(!capture.secrets["id"]);
    }

    #[test]
    fn a_source_nobody_asked_about_makes_materials_incomplete() {
        let vertex_op = |identifier: &str| SourceOp {
            identifier: identifier.to_owned(),
            ..SourceOp::default()
        };
        let mut capture = Capture::default();
        capture.source(&vertex_op("local://context"), None, None);
        assert!(!capture.is_incomplete);
        let git = vertex_op("git://github.com/a/b.git#main:sub");
        capture.source(&git, None, Some("c0ffee"));
        assert_eq!(capture.git["https://github.com/a/b.git#main"], "c0ffee");
        assert!(!capture.is_incomplete);
        capture.source(&vertex_op("https://host/file"), None, None);
        assert!(capture.is_incomplete);
    }
}

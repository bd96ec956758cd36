//! Sources: options as fields, written as attributes only where they say something.

use std::collections::BTreeMap;

use crate::op::SourceOp;
use crate::state::{Constraints, Spec, State};
use crate::{attr, caps};

/// A source from its raw parts.
pub fn source(
    identifier: impl Into<String>,
    attrs: BTreeMap<String, String>,
    constraints: Constraints,
) -> State {
    State::output_of(
        Spec::Source(SourceOp {
            identifier: identifier.into(),
            attrs,
        }),
        constraints,
    )
}

/// Attributes and abilities, collected.
struct Options {
    attrs: BTreeMap<String, String>,
    constraints: Constraints,
}

impl Options {
    fn new(constraints: Constraints, base: &str) -> Self {
        let mut options = Self {
            attrs: BTreeMap::new(),
            constraints,
        };
        options.need(base);
        options
    }

    fn need(&mut self, cap: &str) {
        self.constraints.metadata.caps.insert(cap.to_owned(), true);
    }

    fn set(&mut self, name: &str, value: impl Into<String>, cap: &str) {
        self.attrs.insert(name.to_owned(), value.into());
        if !cap.is_empty() {
            self.need(cap);
        }
    }

    fn set_if(&mut self, name: &str, value: &str, cap: &str) {
        if !value.is_empty() {
            self.set(name, value, cap);
        }
    }

    fn flag(&mut self, name: &str, value: bool, cap: &str) {
        if value {
            self.set(name, "true", cap);
        }
    }

    /// A list as a JSON array; an empty one is left out.
    fn list(&mut self, name: &str, values: &[String], cap: &str) {
        if !values.is_empty() {
            self.set(name, crate::cache::json::string_array(values), cap);
        }
    }

    fn build(self, identifier: String) -> State {
        source(identifier, self.attrs, self.constraints)
    }
}

/// An image in a registry.
#[derive(Clone, Debug, Default)]
pub struct ImageSource {
    /// Full reference, with tag or digest.
    pub reference: String,
    /// `default`, `pull` or `local`; empty leaves the attribute out.
    pub resolve_mode: String,
    /// What the record is shown as in disk usage.
    pub record_type: String,
    /// How many layers to take.
    pub layer_limit: Option<u32>,
    /// The digest the manifest must have.
    pub checksum: String,
}

impl ImageSource {
    /// The state; needs a platform in `constraints`.
    pub fn state(&self, constraints: Constraints) -> State {
        let mut options = Options::new(constraints, caps::SOURCE_IMAGE);
        let mode_cap = if self.resolve_mode == "pull" {
            caps::SOURCE_IMAGE_RESOLVE_MODE
        } else {
            ""
        };
        options.set_if(attr::IMAGE_RESOLVE_MODE, &self.resolve_mode, mode_cap);
        options.set_if(attr::IMAGE_RECORD_TYPE, &self.record_type, "");
        if let Some(limit) = self.layer_limit {
            options.set(
                attr::IMAGE_LAYER_LIMIT,
                limit.to_string(),
                caps::SOURCE_IMAGE_LAYER_LIMIT,
            );
        }
        options.set_if(attr::IMAGE_CHECKSUM, &self.checksum, caps::SOURCE_IMAGE_CHECKSUM);
        options.build(format!("docker-image://{}", self.reference))
    }
}

/// An image in an OCI layout the client has.
#[derive(Clone, Debug, Default)]
pub struct OciLayoutSource {
    /// Reference with digest.
    pub reference: String,
    /// The session that has the store.
    pub session: String,
    /// Name of the store.
    pub store: String,
    /// How many layers to take.
    pub layer_limit: Option<u32>,
}

impl OciLayoutSource {
    /// The state; needs a platform in `constraints`.
    pub fn state(&self, constraints: Constraints) -> State {
        let mut options = Options::new(constraints, caps::SOURCE_OCI_LAYOUT);
        options.set_if(attr::OCI_LAYOUT_SESSION, &self.session, "");
        options.set_if(attr::OCI_LAYOUT_STORE, &self.store, "");
        if let Some(limit) = self.layer_limit {
            options.set(attr::OCI_LAYOUT_LAYER_LIMIT, limit.to_string(), "");
        }
        options.build(format!("oci-layout://{}", self.reference))
    }
}

/// A directory of the client.
#[derive(Clone, Debug, Default)]
pub struct LocalSource {
    /// Under which name the client offers it.
    pub name: String,
    /// The session that has it; empty means any that does.
    pub session: String,
    /// Tells apart two contexts without a session.
    pub unique: String,
    /// Patterns to take.
    pub include_patterns: Vec<String>,
    /// Paths to take, following links.
    pub follow_paths: Vec<String>,
    /// Patterns to leave out.
    pub exclude_patterns: Vec<String>,
    /// Which earlier transfer to start from.
    pub shared_key_hint: String,
    /// `none` or `metadata`; empty leaves the attribute out.
    pub differ: String,
}

impl LocalSource {
    /// The state.
    pub fn state(&self, constraints: Constraints) -> State {
        let mut options = Options::new(constraints, caps::SOURCE_LOCAL);
        if self.session.is_empty() {
            options.set(attr::LOCAL_UNIQUE, &self.unique, caps::SOURCE_LOCAL_UNIQUE);
        } else {
            options.set(attr::LOCAL_SESSION, &self.session, caps::SOURCE_LOCAL_SESSION_ID);
        }
        options.list(
            attr::LOCAL_INCLUDE_PATTERNS,
            &self.include_patterns,
            caps::SOURCE_LOCAL_INCLUDE_PATTERNS,
        );
        options.list(
            attr::LOCAL_FOLLOW_PATHS,
            &self.follow_paths,
            caps::SOURCE_LOCAL_FOLLOW_PATHS,
        );
        options.list(
            attr::LOCAL_EXCLUDE_PATTERNS,
            &self.exclude_patterns,
            caps::SOURCE_LOCAL_EXCLUDE_PATTERNS,
        );
        options.set_if(
            attr::LOCAL_SHARED_KEY_HINT,
            &self.shared_key_hint,
            caps::SOURCE_LOCAL_SHARED_KEY_HINT,
        );
        options.set_if(attr::LOCAL_DIFFER, &self.differ, "");
        options.build(format!("local://{}", self.name))
    }
}

/// A git repository.
#[derive(Clone, Debug, Default)]
pub struct GitSource {
    /// `host/path`, without scheme, user and port-less; what equal repositories share.
    pub host_and_path: String,
    /// Branch, tag, ref or commit.
    pub reference: String,
    /// Folder in the repository, without leading slash.
    pub subdir: String,
    /// The address to fetch from.
    pub url: String,
    /// Keep the `.git` folder.
    pub keep_git_dir: bool,
    /// The commit that must be found.
    pub checksum: String,
    /// Leave submodules out.
    pub skip_submodules: bool,
    /// `checkout` or `commit`; empty leaves the attribute out.
    pub mtime: String,
    /// Fetch the checksum's commit without asking for the ref.
    pub fetch_by_commit: bool,
    /// Over ssh: which agent, and known_hosts lines.
    pub ssh: Option<GitSsh>,
}

/// How a repository is reached over ssh.
#[derive(Clone, Debug, Default)]
pub struct GitSsh {
    /// Which agent; empty means `default`.
    pub socket: String,
    /// Lines of known_hosts; empty leaves the attribute out.
    pub known_hosts: String,
}

impl GitSource {
    /// The state.
    pub fn state(&self, constraints: Constraints) -> State {
        let mut options = Options::new(constraints, caps::SOURCE_GIT);
        options.flag(attr::GIT_KEEP_DIR, self.keep_git_dir, caps::SOURCE_GIT_KEEP_DIR);
        options.set_if(attr::GIT_FULL_URL, &self.url, caps::SOURCE_GIT_FULL_URL);
        options.set(attr::GIT_AUTH_TOKEN_SECRET, "GIT_AUTH_TOKEN", "");
        options.set(attr::GIT_AUTH_HEADER_SECRET, "GIT_AUTH_HEADER", "");
        if let Some(ssh) = &self.ssh {
            options.need(caps::SOURCE_GIT_KNOWN_SSH_HOSTS);
            options.set_if(attr::GIT_KNOWN_SSH_HOSTS, &ssh.known_hosts, "");
            let socket = if ssh.socket.is_empty() {
                "default"
            } else {
                &ssh.socket
            };
            options.set(attr::GIT_MOUNT_SSH_SOCK, socket, caps::SOURCE_GIT_MOUNT_SSH_SOCK);
        }
        options.set_if(attr::GIT_CHECKSUM, &self.checksum, caps::SOURCE_GIT_CHECKSUM);
        options.flag(
            attr::GIT_SKIP_SUBMODULES,
            self.skip_submodules,
            caps::SOURCE_GIT_SKIP_SUBMODULES,
        );
        options.set_if(attr::GIT_MTIME, &self.mtime, caps::SOURCE_GIT_MTIME);
        options.flag(
            attr::GIT_FETCH_BY_COMMIT,
            self.fetch_by_commit,
            caps::SOURCE_GIT_FETCH_BY_COMMIT,
        );
        let mut identifier = format!("git://{}", self.host_and_path);
        if !self.reference.is_empty() || !self.subdir.is_empty() {
            identifier.push('#');
            identifier.push_str(&self.reference);
            if !self.subdir.is_empty() {
                identifier.push(':');
                identifier.push_str(&self.subdir);
            }
        }
        options.build(identifier)
    }
}

/// A file behind an HTTP address.
#[derive(Clone, Debug, Default)]
pub struct HttpSource {
    /// The address, with scheme.
    pub url: String,
    /// The digest the file must have.
    pub checksum: String,
    /// The file's name; empty leaves it to the answer.
    pub filename: String,
    /// Permission bits; 0 leaves the attribute out.
    pub perm: u32,
    /// Owner; 0 leaves the attribute out.
    pub uid: u32,
    /// Group; 0 leaves the attribute out.
    pub gid: u32,
    /// Request headers by lower-case name.
    pub headers: BTreeMap<String, String>,
}

impl HttpSource {
    /// The state.
    pub fn state(&self, constraints: Constraints) -> State {
        let mut options = Options::new(constraints, caps::SOURCE_HTTP);
        options.set_if(attr::HTTP_CHECKSUM, &self.checksum, caps::SOURCE_HTTP_CHECKSUM);
        options.set_if(attr::HTTP_FILENAME, &self.filename, "");
        if self.perm != 0 {
            options.set(
                attr::HTTP_PERM,
                format!("0{:o}", self.perm),
                caps::SOURCE_HTTP_PERM,
            );
        }
        if self.uid != 0 {
            options.set(attr::HTTP_UID, self.uid.to_string(), caps::SOURCE_HTTP_UID_GID);
        }
        if self.gid != 0 {
            options.set(attr::HTTP_GID, self.gid.to_string(), caps::SOURCE_HTTP_UID_GID);
        }
        for (name, value) in &self.headers {
            options.set(
                &format!("{}{name}", attr::HTTP_HEADER_PREFIX),
                value,
                caps::SOURCE_HTTP_HEADER,
            );
        }
        options.build(self.url.clone())
    }
}

//! The mounts of an exec: from what the op says to what the sandbox is to mount.
//!
//! | kind | becomes | afterwards |
//! |---|---|---|
//! | bind, with an output | overlay with an upper directory | committed |
//! | bind, written but without an output | overlay with an upper directory | thrown away |
//! | bind, read-only | overlay without one | – |
//! | cache | bind of the cache directory | given back |
//! | tmpfs, secret | memory | gone |
//! | ssh | a socket of ours that relays to the caller's agent | removed |
//!
//! Targets are sorted, so that parents come first. Sub paths are resolved by the sandbox, beneath a descriptor.
use crate::{
    ops::cache_error,
    proxy::Trusted,
    worker::{Session, Worker},
};
use cache::view::View;
use cache::{CacheMount, ImmutableRef, Meter, MutableRef, RecordInfo, Sharing};
use llb::op::{CacheSharing, ExecOp, Mount, MountKind, SecretMount, SshMount};
use sandbox::spec;
use solver::{OpContext, OpError};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Everything mounted for one step, and what is to become of it.
pub(crate) struct Prepared {
    pub(crate) root: spec::Root,
    pub(crate) mounts: Vec<spec::Mount>,
    /// What is committed when the step has succeeded, by output number.
    outputs: BTreeMap<u32, Output>,
    caches: Vec<CacheMount>,
    /// Where caches are, by the mount's place in the op.
    cache_paths: BTreeMap<usize, PathBuf>,
    /// Written and thrown away.
    scratch: Vec<Upper>,
    relays: Vec<Relay>,
}

enum Output {
    Written(Upper),
    Unchanged(ImmutableRef),
}

/// What is written of one mount.
struct Upper {
    /// The mount's place in the op.
    at: usize,
    written: MutableRef,
}

/// What of a mount can be looked at from outside.
pub(crate) enum Shown<'a> {
    /// Its layers, and what was written above them.
    Layers,
    /// A directory of the store.
    Directory(&'a Path),
    /// There is nothing in it.
    Nothing,
    /// This is not for others.
    Hidden(&'static str),
}

/// What a step that failed leaves to be looked at.
#[derive(Debug)]
pub struct Left {
    /// The contents of each mount as the step found them; `None` for mounts without.
    pub inputs: Vec<Option<ImmutableRef>>,
    /// The same as it left them. What it wrote goes with the last copy of this.
    pub mounts: Vec<Option<ImmutableRef>>,
    /// Which part of the op it was.
    pub subject: Option<Subject>,
}

/// The part of an op that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A file action, by its number.
    FileAction(usize),
    /// The digest of an input's contents, by the input's number.
    Content(usize),
}

/// Relays connections at a socket of ours to an agent; ends when dropped.
struct Relay {
    path: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
        // It lies in a folder that is cleared when this process is found dead.
        let _ = fs::remove_file(&self.path);
    }
}

/// The op's view of one mount preparation.
pub(crate) struct Preparing<'a> {
    pub(crate) worker: &'a Worker,
    pub(crate) ctx: &'a OpContext,
    pub(crate) session: &'a Session,
    pub(crate) inputs: &'a [ImmutableRef],
    pub(crate) meter: Arc<dyn Meter>,
    /// Cache directories are emptied first (`--no-cache`).
    pub(crate) caches_anew: bool,
}

impl Preparing<'_> {
    /// Prepares all mounts of `op`.
    pub(crate) async fn prepare(&self, op: &ExecOp) -> Result<Prepared, OpError> {
        let root = op
            .root()
            .ok_or_else(|| OpError::user("an exec op without a root mount"))?;
        let mut prepared = Prepared {
            root: spec::Root::Overlay(spec::Overlay::default()),
            mounts: Vec::new(),
            outputs: BTreeMap::new(),
            caches: Vec::new(),
            cache_paths: BTreeMap::new(),
            scratch: Vec::new(),
            relays: Vec::new(),
        };
        // Even a root that may not be written gets an upper directory: mount points have to be made in it.
        let at = |mount: &Mount| op.mounts.iter().position(|one| std::ptr::eq(one, mount));
        let root_at = at(root).unwrap_or_default();
        let (overlay, _) = self
            .overlay((root_at, root), true, &op.meta.args, &mut prepared)
            .await?;
        if !root.selector.is_empty() && root.selector != "/" {
            return Err(OpError::user("a root mount with a selector is not supported"));
        }
        prepared.root = spec::Root::Overlay(overlay);
        let mut others: Vec<(String, (usize, &Mount))> = op
            .mounts
            .iter()
            .enumerate()
            .filter(|(at, _)| *at != root_at)
            .map(|(at, mount)| (joined(&op.meta.cwd, &mount.dest), (at, mount)))
            .collect();
        others.sort_by(|a, b| a.0.cmp(&b.0));
        for (target, mount) in others {
            if target == "/" {
                return Err(OpError::user(format!(
                    "mount target {:?} is the root",
                    mount.1.dest
                )));
            }
            self.mount(target, mount, &op.meta.args, &mut prepared).await?;
        }
        Ok(prepared)
    }

    fn input(&self, mount: &Mount) -> Result<ImmutableRef, OpError> {
        match mount.input {
            None => Ok(self.worker.cache.scratch()),
            Some(index) => self.inputs.get(index as usize).cloned().ok_or_else(|| {
                OpError::user(format!(
                    "mount {} has input {index} of {}",
                    mount.dest,
                    self.inputs.len()
                ))
            }),
        }
    }

    /// The layers of a bind mount, with an upper directory where it is written.
    async fn overlay(
        &self,
        (at, mount): (usize, &Mount),
        is_root: bool,
        args: &[String],
        prepared: &mut Prepared,
    ) -> Result<(spec::Overlay, ImmutableRef), OpError> {
        let mut input = self.input(mount)?;
        if mount.output.is_some() {
            input = input.persist(&self.meter).await.map_err(cache_error)?;
        }
        let directories = self
            .ctx
            .unless_canceled(input.directories(&self.meter))
            .await?
            .map_err(cache_error)?;
        let mut overlay = spec::Overlay {
            lowers: directories.into_iter().rev().collect(),
            upper: None,
        };
        if mount.readonly && !is_root {
            if let Some(output) = mount.output {
                prepared.outputs.insert(output, Output::Unchanged(input.clone()));
            }
            return Ok((overlay, input));
        }
        let info = RecordInfo::new(format!("mount {} from exec {}", mount.dest, args.join(" ")));
        let written = self.worker.cache.new_mutable(&input, info).map_err(cache_error)?;
        take_attributes(&overlay.lowers, &written.upper()).map_err(OpError::environment)?;
        overlay.upper = Some(spec::Upper {
            dir: written.upper(),
            work: written.work(),
        });
        let written = Upper { at, written };
        match mount.output {
            Some(output) if !mount.readonly => {
                drop(prepared.outputs.insert(output, Output::Written(written)))
            }
            Some(output) => {
                prepared.outputs.insert(output, Output::Unchanged(input.clone()));
                prepared.scratch.push(written);
            }
            None => prepared.scratch.push(written),
        }
        Ok((overlay, input))
    }

    async fn mount(
        &self,
        target: String,
        (at, mount): (usize, &Mount),
        args: &[String],
        prepared: &mut Prepared,
    ) -> Result<(), OpError> {
        let mut flags = spec::MountFlags::default();
        let source = match &mount.kind {
            MountKind::Bind => {
                let (overlay, _) = self.overlay((at, mount), false, args, prepared).await?;
                spec::Source::Overlay {
                    overlay,
                    subpath: mount.selector.clone(),
                }
            }
            MountKind::Cache(cache) => {
                let sharing = match cache.sharing {
                    CacheSharing::Shared => Sharing::Shared,
                    CacheSharing::Private => Sharing::Private,
                    CacheSharing::Locked => Sharing::Locked,
                };
                let path = self.cache_directory(&cache.id, sharing, mount, prepared).await?;
                prepared.cache_paths.insert(at, path.clone());
                spec::Source::Bind {
                    path,
                    subpath: String::new(),
                }
            }
            MountKind::Tmpfs { size } => {
                flags.nosuid = true;
                spec::Source::Tmpfs {
                    size_bytes: u64::try_from(*size).ok().filter(|size| *size > 0),
                    mode: 0o1777,
                }
            }
            MountKind::Secret(secret) => match self.secret(secret).await? {
                None => return Ok(()),
                Some(file) => {
                    flags = spec::MountFlags {
                        nosuid: true,
                        nodev: true,
                        noexec: file.mode & 0o111 == 0,
                    };
                    spec::Source::Secret(file)
                }
            },
            MountKind::Ssh(ssh) => match self.agent(ssh, prepared).await? {
                None => return Ok(()),
                Some(path) => spec::Source::Socket {
                    path,
                    uid: ssh.uid,
                    gid: ssh.gid,
                    mode: ssh.mode & 0o777,
                },
            },
        };
        let readonly = mount.readonly || matches!(mount.kind, MountKind::Secret(_));
        prepared.mounts.push(spec::Mount {
            target,
            source,
            readonly,
            flags,
        });
        Ok(())
    }

    async fn cache_directory(
        &self,
        id: &str,
        sharing: Sharing,
        mount: &Mount,
        prepared: &mut Prepared,
    ) -> Result<PathBuf, OpError> {
        let seed = self.input(mount)?;
        let id = match (mount.input, seed.id()) {
            (Some(_), Some(seed)) => format!("{id}:{seed}"),
            _ => id.to_owned(),
        };
        let taken = self.worker.cache.cache_mount(&id, sharing, self.caches_anew);
        let mut taken = self.ctx.unless_canceled(taken).await?.map_err(cache_error)?;
        if taken.is_new() {
            let layers = seed.directories(&self.meter).await.map_err(cache_error)?;
            for layer in layers {
                let from = layer.join(mount.selector.trim_start_matches('/'));
                if from.is_dir() {
                    copy_tree(&from, taken.path()).map_err(OpError::environment)?;
                }
            }
            taken.keep().map_err(cache_error)?;
        }
        let path = taken.path().to_owned();
        prepared.caches.push(taken);
        Ok(path)
    }

    async fn secret(&self, secret: &SecretMount) -> Result<Option<spec::SecretFile>, OpError> {
        let found = self
            .session
            .caller()
            .secret(&secret.id)
            .await
            .map_err(OpError::user)?;
        match found {
            Some(bytes) => Ok(Some(spec::SecretFile {
                content: bytes.expose().to_vec(),
                mode: secret.mode & 0o777,
                uid: secret.uid,
                gid: secret.gid,
            })),
            None if secret.optional => Ok(None),
            None => Err(OpError::user(format!("secret {}: not found", secret.id))),
        }
    }

    async fn agent(&self, ssh: &SshMount, prepared: &mut Prepared) -> Result<Option<PathBuf>, OpError> {
        let agent = match self
            .session
            .caller()
            .ssh_agent(&ssh.id)
            .await
            .map_err(OpError::user)?
        {
            Some(agent) => agent,
            None if ssh.optional => return Ok(None),
            None => {
                let id = if ssh.id.is_empty() { "default" } else { &ssh.id };
                return Err(OpError::user(format!(
                    "no SSH key {id:?} forwarded from the client"
                )));
            }
        };
        let written = self.worker.cache.root().join("active");
        let name = format!("{}-{:p}-{}", std::process::id(), prepared, prepared.relays.len());
        let path = written.join(&oci::Digest::of(name.as_bytes()).hex()[..24]);
        let listener = tokio::net::UnixListener::bind(&path).map_err(OpError::environment)?;
        let task = tokio::spawn(async move {
            while let Ok((mut inside, _)) = listener.accept().await {
                let agent = agent.clone();
                tokio::spawn(async move {
                    if let Ok(mut outside) = agent.connect().await {
                        // Either end may close at any time; there is nobody to tell.
                        let _ = tokio::io::copy_bidirectional(&mut inside, &mut outside).await;
                    }
                });
            }
        });
        prepared.relays.push(Relay {
            path: path.clone(),
            task,
        });
        Ok(Some(path))
    }
}

impl Prepared {
    /// Directories of the store that the step writes.
    pub(crate) fn written(&self) -> Vec<PathBuf> {
        let outputs = self.outputs.values().filter_map(|output| match output {
            Output::Written(written) => Some(written),
            Output::Unchanged(_) => None,
        });
        let all = outputs.chain(&self.scratch);
        all.map(|one| one.written.upper()).collect()
    }

    /// Ends what was prepared of a step that failed: what it wrote becomes refs that go with their last copy, each in place
    /// of what it found there. What cannot be kept is left as it was found.
    pub(crate) fn leave(self, inputs: Vec<Option<ImmutableRef>>) -> Left {
        let Prepared {
            outputs,
            caches,
            scratch,
            relays,
            ..
        } = self;
        drop((caches, relays));
        let mut mounts = inputs.clone();
        let outputs = outputs.into_values().filter_map(|output| match output {
            Output::Written(written) => Some(written),
            Output::Unchanged(_) => None,
        });
        for Upper { at, written } in outputs.chain(scratch) {
            match (written.commit_in_passing(), mounts.get_mut(at)) {
                (Ok(made), Some(place)) => *place = Some(made),
                (Ok(_), None) => {}
                (Err(error), _) => tracing::warn!(%error, "what a failed step wrote is not kept"),
            }
        }
        Left {
            inputs,
            mounts,
            subject: None,
        }
    }

    /// What of a mount can be looked at from outside; `at` is its place in the op.
    pub(crate) fn shown(&self, at: usize, mount: &Mount) -> Shown<'_> {
        match &mount.kind {
            MountKind::Bind => Shown::Layers,
            MountKind::Cache(_) => match self.cache_paths.get(&at) {
                Some(path) => Shown::Directory(path),
                None => Shown::Nothing,
            },
            // Each process tree has its own; BuildKit shows an empty one too.
            MountKind::Tmpfs { .. } => Shown::Nothing,
            MountKind::Secret(_) => Shown::Hidden("secret"),
            MountKind::Ssh(_) => Shown::Hidden("socket"),
        }
    }

    /// The files of a mount of layers with what was written so far, `below` being those beneath. Blocks.
    pub(crate) fn view(&self, at: usize, below: &View) -> Result<View, cache::CacheError> {
        let written = self.outputs.values().filter_map(|output| match output {
            Output::Written(written) => Some(written),
            Output::Unchanged(_) => None,
        });
        match written.chain(&self.scratch).find(|upper| upper.at == at) {
            Some(upper) => upper.written.view(below),
            None => Ok(below.clone()),
        }
    }

    /// Lets the image `view` of the root believe a certificate until it is taken out again.
    pub(crate) async fn trust(&self, view: View, certificate: String) -> Result<Option<Trusted>, OpError> {
        let spec::Root::Overlay(spec::Overlay {
            upper: Some(upper), ..
        }) = &self.root
        else {
            return Ok(None);
        };
        let upper = upper.dir.clone();
        tokio::task::spawn_blocking(move || Trusted::put(&view, &upper, &certificate))
            .await
            .map_err(|_| OpError::canceled())?
    }

    /// Ends what was prepared: what is written and asked for becomes refs, in the order of the outputs.
    pub(crate) fn commit(self) -> Result<Vec<ImmutableRef>, OpError> {
        let Prepared {
            outputs,
            caches,
            scratch,
            relays,
            ..
        } = self;
        drop((caches, scratch, relays));
        outputs
            .into_values()
            .map(|output| match output {
                Output::Written(Upper { written, .. }) => written.commit().map_err(cache_error),
                Output::Unchanged(found) => Ok(found),
            })
            .collect()
    }
}

/// A target as an absolute path without `.` and `..`.
fn joined(cwd: &str, target: &str) -> String {
    let whole = if target.starts_with('/') {
        target.to_owned()
    } else {
        format!("{cwd}/{target}")
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Gives the upper directory the mode and owner that the root has below it.
fn take_attributes(lowers: &[PathBuf], upper: &Path) -> std::io::Result<()> {
    let Some(top) = lowers.first() else { return Ok(()) };
    let meta = fs::symlink_metadata(top)?;
    fs::set_permissions(upper, meta.permissions())?;
    if rustix::process::geteuid().is_root() {
        // One id only: then everything is root's anyway.
        let _ = chown(upper, Some(meta.uid()), Some(meta.gid()));
    }
    Ok(())
}

/// Copies a folder's attributes and everything in it.
fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    let meta = fs::symlink_metadata(from)?;
    if !to.exists() {
        fs::create_dir(to)?;
    }
    chown(to, Some(meta.uid()), Some(meta.gid()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(meta.mode() & 0o7777))?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        let meta = fs::symlink_metadata(entry.path())?;
        if kind.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path())?, &target)?;
            std::os::unix::fs::lchown(&target, Some(meta.uid()), Some(meta.gid()))?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &target)?;
            chown(&target, Some(meta.uid()), Some(meta.gid()))?;
            fs::set_permissions(&target, fs::Permissions::from_mode(meta.mode() & 0o7777))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::joined;

    #[test]
    fn targets_are_absolute_and_stay_inside() {
        for (cwd, target, expected) in [
            ("/w", "a", "/w/a"),
            ("/w", "/a//b/", "/a/b"),
            ("/w", "../x", "/x"),
            ("/", "../../x", "/x"),
            ("/w", ".", "/w"),
            ("/w", "/", "/"),
        ] {
            assert_eq!(joined(cwd, target), expected, "{cwd} {target}");
        }
    }
}

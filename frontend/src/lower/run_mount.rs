//! RUN --mount: binds, caches, tmpfs, secrets and ssh agents.

use llb::op::{CacheMount, CacheSharing, MkdirAction, SecretEnv, SecretMount, SshMount};
use llb::state::{
    ActionSpec, ChownSpec, Constraints, ExecSpec, FileSpec, MountSource, MountSpec, OwnerSpec, State,
};

use crate::error::Error;
use crate::lower::outline::Capture;
use crate::lower::path;
use crate::lower::stage::{Scope, Stage};
use crate::parse::ast::{Instruction, Mount, MountKind, Run};
use crate::parse::parse_mount;

impl Stage {
    /// The mounts, expanded.
    pub(super) fn mounts(
        &self,
        scope: &Scope<'_>,
        instruction: &Instruction,
        run: &Run,
    ) -> Result<Vec<Mount>, Error> {
        run.mounts
            .iter()
            .map(|text| parse_mount(text, |value| self.expand(scope, instruction, value)))
            .collect()
    }

    /// Adds the mounts to an exec, and notes which paths they use.
    pub(super) fn add_mounts(
        &mut self,
        scope: &mut Scope<'_>,
        ranges: &[llb::Range],
        mounts: &[Mount],
        sources: &[usize],
        spec: &mut ExecSpec,
    ) -> Result<(), Error> {
        for (mount, source) in mounts.iter().zip(sources) {
            match mount.kind {
                MountKind::Secret => {
                    let id = secret(mount, spec)?;
                    Capture::needs(&mut self.capture.secrets, &id, mount.is_required, ranges);
                }
                MountKind::Ssh => {
                    ssh(mount, spec)?;
                    let id = if mount.id.is_empty() { "default" } else { &mount.id };
                    Capture::needs(&mut self.capture.ssh, id, mount.is_required, ranges);
                }
                MountKind::Bind | MountKind::Cache | MountKind::Tmpfs => {
                    self.file_system(scope, mount, *source, spec)?;
                }
            }
        }
        Ok(())
    }

    fn file_system(
        &self,
        scope: &mut Scope<'_>,
        mount: &Mount,
        source: usize,
        spec: &mut ExecSpec,
    ) -> Result<(), Error> {
        // A cache that is not seeded begins empty; anything else without `from` takes the build context.
        let is_context = mount.from.is_empty() && mount.kind != MountKind::Cache;
        let mut state = if is_context {
            scope.context.clone()
        } else {
            scope.source(source)?.state.clone()
        };
        let target = if path::clean(&mount.target).starts_with('/') {
            mount.target.clone()
        } else {
            path::rooted(&path::join(&self.dir, &mount.target))
        };
        not_root(&target)?;
        let mut selector = path::rooted(&mount.source);
        if selector == "/" {
            selector.clear();
            if mount.uid.is_some() || mount.gid.is_some() || mount.mode.is_some() {
                state = owned_cache(mount, &state);
                "/cache".clone_into(&mut selector);
            }
        }
        let source_of = match mount.kind {
            MountKind::Tmpfs => MountSource::Tmpfs { size: mount.size },
            MountKind::Cache => {
                let id = if mount.id.is_empty() {
                    path::clean(&mount.target)
                } else {
                    mount.id.clone()
                };
                let id = format!("{}/{id}", scope.given.options.cache_mount_namespace);
                MountSource::Cache(
                    CacheMount {
                        id,
                        sharing: mount.sharing.unwrap_or(CacheSharing::Shared),
                    },
                    state,
                )
            }
            MountKind::Bind | MountKind::Secret | MountKind::Ssh => MountSource::State(state),
        };
        spec.mounts.push(MountSpec {
            selector,
            readonly: mount.is_readonly,
            discarded: !mount.is_readonly && mount.kind == MountKind::Bind,
            ..MountSpec::new(target, source_of)
        });
        let used = path::rooted(&mount.source);
        if is_context {
            scope.context_paths.insert(used);
        } else {
            let paths_of = scope.source(source)?.paths_of;
            scope.paths[paths_of].insert(used);
        }
        Ok(())
    }
}

/// A cache begins with a folder of the owner and mode that were asked for.
fn owned_cache(mount: &Mount, base: &State) -> State {
    let action = MkdirAction {
        path: "/cache".to_owned(),
        mode: (mount.mode.unwrap_or(0o755) & 0o777) as i32,
        timestamp: -1,
        ..MkdirAction::default()
    };
    let owner = ChownSpec {
        user: Some(OwnerSpec::Id(mount.uid.unwrap_or(0))),
        group: Some(OwnerSpec::Id(mount.gid.unwrap_or(0))),
    };
    let actions = vec![ActionSpec::Mkdir {
        action,
        owner: Some(owner),
    }];
    let constraints = Constraints::default().named("[internal] setting cache mount permissions");
    FileSpec {
        base: base.clone(),
        actions,
    }
    .state(constraints)
}

/// Nothing is mounted over the root file system.
fn not_root(target: &str) -> Result<(), Error> {
    if path::rooted(target) == "/" {
        return Err(Error::invalid("invalid mount target \"/\""));
    }
    Ok(())
}

/// Owner and mode of a file from the client; the defaults unless any of them is given.
fn owner(mount: &Mount, default_mode: u32) -> (u32, u32, u32) {
    (
        mount.uid.unwrap_or(0),
        mount.gid.unwrap_or(0),
        mount.mode.unwrap_or(default_mode),
    )
}

/// Gives the secret's id.
fn secret(mount: &Mount, spec: &mut ExecSpec) -> Result<String, Error> {
    let id = match (mount.source.as_str(), mount.id.as_str(), mount.target.as_str()) {
        ("", "", "") => return Err(Error::invalid("a secret mount must have an id or a target")),
        ("", "", target) => path::base(target),
        ("", id, _) => id,
        (source, ..) => source,
    };
    let dest = match (mount.target.as_str(), &mount.env) {
        ("", Some(_)) => None,
        ("", None) => Some(format!("/run/secrets/{}", path::base(id))),
        (target, _) => Some(target.to_owned()),
    };
    let (uid, gid, mode) = owner(mount, 0o400);
    let optional = !mount.is_required;
    if let Some(name) = &mount.env {
        spec.secret_env.push(SecretEnv {
            id: id.to_owned(),
            name: name.clone(),
            optional,
        });
    }
    if let Some(dest) = dest {
        not_root(&dest)?;
        spec.secrets.push((
            dest,
            SecretMount {
                id: id.to_owned(),
                uid,
                gid,
                mode,
                optional,
            },
        ));
    }
    Ok(id.to_owned())
}

fn ssh(mount: &Mount, spec: &mut ExecSpec) -> Result<(), Error> {
    if !mount.source.is_empty() {
        return Err(Error::invalid("an ssh mount has no source"));
    }
    if !mount.target.is_empty() {
        not_root(&mount.target)?;
    }
    let (uid, gid, mode) = owner(mount, 0o600);
    let ssh = SshMount {
        id: mount.id.clone(),
        uid,
        gid,
        mode,
        optional: !mount.is_required,
    };
    spec.ssh.push((mount.target.clone(), ssh));
    Ok(())
}

//! Writes ops as Go writes them, so that the same op always has the same digest, here and in BuildKit.
//!
//! ```text
//! Op, inputs, platform ─▶ op_bytes: field 1, field 10, field 11 (always, `5a 00`), then the op itself
//! ```
//!
//! What is particular: the oneof comes last though its numbers are lower than 10; field 11 is written
//! even when empty; entries of maps are sorted by key and always hold both key and value. The first two
//! are done by encoding two messages one after the other, which in protobuf is one message; the third
//! by writing the source op by hand.

use bytes::BufMut;
use oci::Platform;
use prost::Message as _;

use crate::definition::{Definition, Edge, OpMetadata, SourceInfo};
use crate::generated as pb;
use crate::op::{
    CacheSharing, Chown, ContentCache, ExecOp, FileAction, FileActionKind, FileInput, FileOp, Mount,
    MountKind, NetMode, Op, Owner, SecurityMode, SourceOp,
};

/// Encodes one vertex; the digest of the result is its name. Only for ops that are made here or changed on
/// purpose: a received vertex is named by the bytes it came as.
pub fn op_bytes(inputs: &[Edge], op: &Op, platform: Option<&Platform>) -> Vec<u8> {
    let head = pb::Op {
        inputs: inputs.iter().map(input).collect(),
        platform: platform.map(platform_message),
        constraints: Some(pb::WorkerConstraints::default()),
        op: None,
    };
    let mut bytes = head.encode_to_vec();
    match op {
        Op::Source(source) => source_field(source, &mut bytes),
        other => {
            let tail = pb::Op {
                inputs: Vec::new(),
                platform: None,
                constraints: None,
                op: wire_op(other, inputs.len()),
            };
            tail.encode(&mut bytes).expect("a Vec grows as needed");
        }
    }
    bytes
}

/// Encodes the last entry of a definition, which names its result.
pub(crate) fn result_bytes(edge: &Edge) -> Vec<u8> {
    pb::Op {
        inputs: vec![input(edge)],
        platform: None,
        constraints: None,
        op: None,
    }
    .encode_to_vec()
}

impl Definition {
    /// The wire form. The ops are the same bytes that came in or were made by `state`.
    pub fn to_proto(&self) -> pb::Definition {
        pb::Definition {
            def: self.ops.clone(),
            metadata: self
                .metadata
                .iter()
                .map(|(digest, m)| (digest.to_string(), metadata(m)))
                .collect(),
            source: Some(source_info(&self.source)),
        }
    }
}

fn input(edge: &Edge) -> pb::Input {
    pb::Input {
        digest: edge.digest.to_string(),
        index: i64::from(edge.index),
    }
}

fn platform_message(platform: &Platform) -> pb::Platform {
    pb::Platform {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone().unwrap_or_default(),
        os_version: platform.os_version.clone().unwrap_or_default(),
        os_features: platform.os_features.clone(),
    }
}

/// Field 3 of an op, by hand because of the map entries.
fn source_field(source: &SourceOp, bytes: &mut Vec<u8>) {
    use prost::encoding::{WireType, encode_key, encode_varint, string};
    let mut body = pb::SourceOp {
        identifier: source.identifier.clone(),
        attrs: Default::default(),
    }
    .encode_to_vec();
    for (key, value) in &source.attrs {
        let mut entry = Vec::with_capacity(key.len() + value.len() + 8);
        string::encode(1, key, &mut entry);
        string::encode(2, value, &mut entry);
        encode_key(2, WireType::LengthDelimited, &mut body);
        encode_varint(entry.len() as u64, &mut body);
        body.put_slice(&entry);
    }
    encode_key(3, WireType::LengthDelimited, bytes);
    encode_varint(body.len() as u64, bytes);
    bytes.put_slice(&body);
}

fn index(position: Option<u32>) -> i64 {
    position.map_or(-1, i64::from)
}

fn wire_op(op: &Op, inputs: usize) -> Option<pb::op::Op> {
    Some(match op {
        Op::Source(_) => return None,
        Op::Exec(exec) => pb::op::Op::Exec(exec_message(exec)),
        Op::File(file) => pb::op::Op::File(file_message(file, inputs)),
        Op::Merge(merge) => pb::op::Op::Merge(pb::MergeOp {
            inputs: merge
                .inputs
                .iter()
                .map(|i| pb::MergeInput { input: index(*i) })
                .collect(),
        }),
        Op::Diff(diff) => pb::op::Op::Diff(pb::DiffOp {
            lower: Some(pb::LowerDiffInput {
                input: index(diff.lower),
            }),
            upper: Some(pb::UpperDiffInput {
                input: index(diff.upper),
            }),
        }),
        Op::Build(build) => pb::op::Op::Build(pb::BuildOp {
            builder: index(build.builder),
            inputs: build
                .inputs
                .iter()
                .map(|(n, i)| (n.clone(), pb::BuildInput { input: index(*i) }))
                .collect(),
            def: build.definition.as_ref().map(|definition| definition.to_proto()),
            attrs: build.attrs.clone(),
        }),
        Op::Passthrough(pass) => pb::op::Op::Passthrough(pb::PassthroughOp {
            id: pass.id.clone(),
            outputs: pass.outputs.iter().map(|i| i64::from(*i)).collect(),
        }),
    })
}

fn exec_message(exec: &ExecOp) -> pb::ExecOp {
    let meta = &exec.meta;
    pb::ExecOp {
        meta: Some(pb::Meta {
            args: meta.args.clone(),
            env: meta.env.clone(),
            cwd: meta.cwd.clone(),
            user: meta.user.clone(),
            proxy_env: meta.proxy_env.as_ref().map(|p| pb::ProxyEnv {
                http_proxy: p.http_proxy.clone(),
                https_proxy: p.https_proxy.clone(),
                ftp_proxy: p.ftp_proxy.clone(),
                no_proxy: p.no_proxy.clone(),
                all_proxy: p.all_proxy.clone(),
            }),
            extra_hosts: meta
                .extra_hosts
                .iter()
                .map(|h| pb::HostIp {
                    host: h.host.clone(),
                    ip: h.ip.clone(),
                })
                .collect(),
            hostname: meta.hostname.clone(),
            ulimit: meta
                .ulimits
                .iter()
                .map(|u| pb::Ulimit {
                    name: u.name.clone(),
                    soft: u.soft,
                    hard: u.hard,
                })
                .collect(),
            cgroup_parent: meta.cgroup_parent.clone(),
            remove_mount_stubs_recursive: meta.remove_mount_stubs_recursive,
            valid_exit_codes: meta.valid_exit_codes.clone(),
        }),
        mounts: exec.mounts.iter().map(mount_message).collect(),
        network: match exec.network {
            NetMode::Sandbox => pb::NetMode::Unset,
            NetMode::Host => pb::NetMode::Host,
            NetMode::None => pb::NetMode::None,
        } as i32,
        security: match exec.security {
            SecurityMode::Sandbox => pb::SecurityMode::Sandbox,
            SecurityMode::Insecure => pb::SecurityMode::Insecure,
        } as i32,
        secretenv: exec
            .secret_env
            .iter()
            .map(|s| pb::SecretEnv {
                id: s.id.clone(),
                name: s.name.clone(),
                optional: s.optional,
            })
            .collect(),
        cdi_devices: exec
            .cdi_devices
            .iter()
            .map(|d| pb::CdiDevice {
                name: d.name.clone(),
                optional: d.optional,
            })
            .collect(),
    }
}

fn mount_message(mount: &Mount) -> pb::Mount {
    let mut wire = pb::Mount {
        input: index(mount.input),
        selector: mount.selector.clone(),
        dest: mount.dest.clone(),
        output: index(mount.output),
        readonly: mount.readonly,
        content_cache: match mount.content_cache {
            ContentCache::Default => pb::MountContentCache::Default,
            ContentCache::On => pb::MountContentCache::On,
            ContentCache::Off => pb::MountContentCache::Off,
        } as i32,
        ..Default::default()
    };
    let kind = match &mount.kind {
        MountKind::Bind => pb::MountType::Bind,
        MountKind::Tmpfs { size } => {
            wire.tmpfs_opt = Some(pb::TmpfsOpt { size: *size });
            pb::MountType::Tmpfs
        }
        MountKind::Cache(cache) => {
            let sharing = match cache.sharing {
                CacheSharing::Shared => pb::CacheSharingOpt::Shared,
                CacheSharing::Private => pb::CacheSharingOpt::Private,
                CacheSharing::Locked => pb::CacheSharingOpt::Locked,
            } as i32;
            wire.cache_opt = Some(pb::CacheOpt {
                id: cache.id.clone(),
                sharing,
            });
            pb::MountType::Cache
        }
        MountKind::Secret(s) => {
            wire.secret_opt = Some(pb::SecretOpt {
                id: s.id.clone(),
                uid: s.uid,
                gid: s.gid,
                mode: s.mode,
                optional: s.optional,
            });
            pb::MountType::Secret
        }
        MountKind::Ssh(s) => {
            wire.ssh_opt = Some(pb::SshOpt {
                id: s.id.clone(),
                uid: s.uid,
                gid: s.gid,
                mode: s.mode,
                optional: s.optional,
            });
            pb::MountType::Ssh
        }
    };
    wire.mount_type = kind as i32;
    wire
}

fn file_message(file: &FileOp, inputs: usize) -> pb::FileOp {
    pb::FileOp {
        actions: file
            .actions
            .iter()
            .map(|action| action_message(action, inputs))
            .collect(),
    }
}

/// Where a file input stands among "inputs first, then results of actions"; -1 is scratch.
pub(crate) fn file_index(input: FileInput, inputs: usize) -> i64 {
    match input {
        FileInput::Scratch => -1,
        FileInput::Input(position) => i64::from(position),
        FileInput::Action(number) => inputs as i64 + i64::from(number),
    }
}

fn action_message(action: &FileAction, inputs: usize) -> pb::FileAction {
    let kind = match &action.kind {
        FileActionKind::Copy(c) => pb::file_action::Action::Copy(pb::FileActionCopy {
            src: c.src.clone(),
            dest: c.dest.clone(),
            owner: chown(&c.owner),
            mode: c.mode,
            mode_str: c.mode_str.clone(),
            follow_symlink: c.follow_symlink,
            dir_copy_contents: c.dir_copy_contents,
            attempt_unpack_docker_compatibility: c.attempt_unpack,
            create_dest_path: c.create_dest_path,
            allow_wildcard: c.allow_wildcard,
            allow_empty_wildcard: c.allow_empty_wildcard,
            timestamp: c.timestamp,
            include_patterns: c.include_patterns.clone(),
            exclude_patterns: c.exclude_patterns.clone(),
            always_replace_existing_dest_paths: c.always_replace_existing,
            required_paths: c.required_paths.clone(),
        }),
        FileActionKind::Mkfile(m) => pb::file_action::Action::Mkfile(pb::FileActionMkFile {
            path: m.path.clone(),
            mode: m.mode,
            data: m.data.clone(),
            owner: chown(&m.owner),
            timestamp: m.timestamp,
        }),
        FileActionKind::Mkdir(m) => pb::file_action::Action::Mkdir(pb::FileActionMkDir {
            path: m.path.clone(),
            mode: m.mode,
            make_parents: m.make_parents,
            owner: chown(&m.owner),
            timestamp: m.timestamp,
        }),
        FileActionKind::Rm(r) => pb::file_action::Action::Rm(pb::FileActionRm {
            path: r.path.clone(),
            allow_not_found: r.allow_not_found,
            allow_wildcard: r.allow_wildcard,
        }),
        FileActionKind::Symlink(s) => pb::file_action::Action::Symlink(pb::FileActionSymlink {
            oldpath: s.oldpath.clone(),
            newpath: s.newpath.clone(),
            owner: chown(&s.owner),
            timestamp: s.timestamp,
        }),
    };
    pb::FileAction {
        input: file_index(action.input, inputs),
        secondary_input: file_index(action.secondary_input, inputs),
        output: index(action.output),
        action: Some(kind),
    }
}

fn chown(owner: &Option<Chown>) -> Option<pb::ChownOpt> {
    let one = |owner: &Option<Owner>| {
        owner.as_ref().map(|owner| pb::UserOpt {
            user: Some(match owner {
                Owner::Id(id) => pb::user_opt::User::ById(*id),
                Owner::Name { name, input } => pb::user_opt::User::ByName(pb::NamedUserOpt {
                    name: name.clone(),
                    input: index(*input),
                }),
            }),
        })
    };
    owner.as_ref().map(|chown| pb::ChownOpt {
        user: one(&chown.user),
        group: one(&chown.group),
    })
}

fn metadata(m: &OpMetadata) -> pb::OpMetadata {
    pb::OpMetadata {
        ignore_cache: m.ignore_cache,
        description: m.description.clone(),
        export_cache: m.export_cache.map(|value| pb::ExportCache { value }),
        caps: m.caps.clone(),
        progress_group: m.progress_group.as_ref().map(|g| pb::ProgressGroup {
            id: g.id.clone(),
            name: g.name.clone(),
            weak: g.weak,
        }),
        linux_resources: m.linux_resources.as_ref().map(|r| pb::LinuxResources {
            memory: r.memory,
            memory_swap: r.memory_swap,
            cpu_shares: r.cpu_shares,
            cpu_period: r.cpu_period,
            cpu_quota: r.cpu_quota,
            cpuset_cpus: r.cpuset_cpus.clone(),
            cpuset_mems: r.cpuset_mems.clone(),
        }),
    }
}

fn source_info(source: &SourceInfo) -> pb::Source {
    let position = |p: crate::definition::Position| {
        Some(pb::Position {
            line: p.line,
            character: p.character,
        })
    };
    pb::Source {
        locations: source
            .locations
            .iter()
            .map(|(digest, places)| {
                let locations = places
                    .iter()
                    .map(|place| pb::Location {
                        source_index: i32::try_from(place.source_index).unwrap_or(i32::MAX),
                        ranges: place
                            .ranges
                            .iter()
                            .map(|r| pb::Range {
                                start: position(r.start),
                                end: position(r.end),
                            })
                            .collect(),
                    })
                    .collect();
                (digest.to_string(), pb::Locations { locations })
            })
            .collect(),
        infos: source
            .infos
            .iter()
            .map(|info| pb::SourceInfo {
                filename: info.filename.clone(),
                data: info.data.clone(),
                language: info.language.clone(),
                definition: info.definition.as_ref().map(|definition| definition.to_proto()),
            })
            .collect(),
    }
}

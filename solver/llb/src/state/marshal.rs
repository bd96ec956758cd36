//! Writes a graph: nodes to bytes, inputs first, each once.
//!
//! Recursion would follow the length of a Dockerfile, so the walk keeps its own stack.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use oci::Digest;

use crate::caps;
use crate::definition::{Definition, Edge, Location, OpMetadata, SourceFile};
use crate::encode::{op_bytes, result_bytes};
use crate::error::Error;
use crate::op::{
    Chown, DiffOp, ExecOp, FileAction, FileActionKind, FileInput, FileOp, MergeOp, Mount, MountKind, NetMode,
    Op, Owner, SecurityMode,
};
use crate::state::exec::{ExecSpec, MountSource};
use crate::state::file::{ActionSpec, ChownSpec, FileSpec, OwnerSpec};
use crate::state::{Kind, Node, OutputOf, SourceMap, Spec, State};

/// Writes everything `result` depends on.
///
/// # Errors
/// When a promised state was never given, or a node lacks what it must have.
pub fn marshal(result: &State) -> Result<Definition, Error> {
    let mut writer = Writer::default();
    let Some((node, output)) = resolve(result)? else {
        return Ok(Definition::default());
    };
    writer.write(&node)?;
    let root = writer.edge(&node, output);
    writer.finish(root)
}

/// The node behind a state; `None` is scratch.
fn resolve(state: &State) -> Result<Option<(Arc<Node>, OutputOf)>, Error> {
    let mut state = state.clone();
    loop {
        state = match state.0 {
            Kind::Scratch => return Ok(None),
            Kind::Output { node, output } => return Ok(Some((node, output))),
            Kind::Promised(slot) => slot
                .get()
                .cloned()
                .ok_or_else(|| Error::Unfinished("a promised state was never given".to_owned()))?,
        };
    }
}

#[derive(Default)]
struct Writer {
    definition: Definition,
    written: HashMap<*const Node, Digest>,
    seen: HashSet<Digest>,
    maps: Vec<Arc<SourceMap>>,
}

impl Writer {
    fn write(&mut self, root: &Arc<Node>) -> Result<(), Error> {
        let mut stack = vec![(Arc::clone(root), false)];
        while let Some((node, inputs_written)) = stack.pop() {
            if self.written.contains_key(&Arc::as_ptr(&node)) {
                continue;
            }
            if inputs_written {
                self.write_one(&node)?;
                continue;
            }
            let mut inputs = Vec::new();
            for state in states(&node.spec) {
                inputs.extend(resolve(state)?.map(|(input, _)| (input, false)));
            }
            stack.push((node, true));
            stack.extend(inputs.into_iter().rev());
        }
        Ok(())
    }

    fn write_one(&mut self, node: &Arc<Node>) -> Result<(), Error> {
        if let Spec::Whole(definition, root) = &node.spec {
            self.take_over(definition);
            self.written.insert(Arc::as_ptr(node), root.digest);
            return Ok(());
        }
        let mut inputs = Inputs {
            writer: self,
            edges: Vec::new(),
        };
        let mut caps = BTreeMap::new();
        let mut need = |cap: &str| {
            caps.insert(cap.to_owned(), true);
        };
        let op = match &node.spec {
            Spec::Whole(..) => unreachable!("taken over above"),
            Spec::Source(source) => Op::Source(source.clone()),
            Spec::Exec(exec) => {
                exec_caps(exec, node, &mut need);
                Op::Exec(inputs.exec(exec)?)
            }
            Spec::File(file) => {
                file_caps(file, &mut need);
                Op::File(inputs.file(file)?)
            }
            Spec::Merge(states) => {
                need(caps::MERGE_OP);
                Op::Merge(MergeOp {
                    inputs: states.iter().map(|s| inputs.push(s)).collect::<Result<_, _>>()?,
                })
            }
            Spec::Diff { lower, upper } => {
                need(caps::DIFF_OP);
                Op::Diff(DiffOp {
                    lower: inputs.push(lower)?,
                    upper: inputs.push(upper)?,
                })
            }
        };
        let edges = inputs.edges;
        let platform = node
            .constraints
            .platform
            .as_ref()
            .filter(|_| is_for_a_platform(&op));
        if platform.is_none() && is_for_a_platform(&op) {
            return Err(Error::Unfinished(
                "an exec or image without a platform".to_owned(),
            ));
        }
        let bytes = op_bytes(&edges, &op, platform);
        let digest = Digest::of(&bytes);
        self.written.insert(Arc::as_ptr(node), digest);
        self.note(digest, node, caps);
        if self.seen.insert(digest) {
            self.definition.ops.push(bytes);
        }
        Ok(())
    }

    /// Adds the ops of another definition, and all that is said about them.
    fn take_over(&mut self, other: &Definition) {
        let Some((_, ops)) = other.ops.split_last() else {
            return;
        };
        for bytes in ops {
            if self.seen.insert(Digest::of(bytes)) {
                self.definition.ops.push(bytes.clone());
            }
        }
        for (digest, metadata) in &other.metadata {
            self.definition
                .metadata
                .entry(*digest)
                .or_insert_with(|| metadata.clone());
        }
        let first = self.maps.len();
        self.maps.extend(other.source.infos.iter().map(|info| {
            Arc::new(SourceMap {
                filename: info.filename.clone(),
                language: info.language.clone(),
                data: info.data.clone(),
                definition: info.definition.as_deref().cloned(),
            })
        }));
        for (digest, places) in &other.source.locations {
            let moved = places.iter().map(|place| Location {
                source_index: place.source_index.saturating_add(first as u32),
                ranges: place.ranges.clone(),
            });
            self.definition
                .source
                .locations
                .entry(*digest)
                .or_default()
                .extend(moved);
        }
    }

    /// Adds what is said about a node to what was said about its digest by equal nodes.
    fn note(&mut self, digest: Digest, node: &Node, caps: BTreeMap<String, bool>) {
        let said = node.constraints.metadata.clone();
        let metadata = self.definition.metadata.entry(digest).or_default();
        metadata.ignore_cache |= said.ignore_cache;
        metadata.description.extend(said.description);
        metadata.export_cache = said.export_cache.or(metadata.export_cache);
        metadata.caps.extend(said.caps);
        metadata.caps.extend(caps);
        metadata.progress_group = said.progress_group.or(metadata.progress_group.take());
        metadata.linux_resources = said.linux_resources.or(metadata.linux_resources.take());
        for location in &node.constraints.locations {
            let index = self
                .maps
                .iter()
                .position(|map| Arc::ptr_eq(map, &location.map) || map == &location.map);
            let index = index.unwrap_or_else(|| {
                self.maps.push(Arc::clone(&location.map));
                self.maps.len() - 1
            });
            self.definition
                .source
                .locations
                .entry(digest)
                .or_default()
                .push(Location {
                    source_index: index as u32,
                    ranges: location.ranges.clone(),
                });
        }
    }

    fn edge(&self, node: &Arc<Node>, output: OutputOf) -> Edge {
        let digest = self.written[&Arc::as_ptr(node)];
        let index = match (output, &node.spec) {
            (OutputOf::Mount(position), Spec::Exec(exec)) => {
                let before = sorted(exec).into_iter().take_while(|at| *at != position);
                before.filter(|at| exec.mounts[*at].has_output()).count() as u32
            }
            (_, Spec::Whole(_, root)) => root.index,
            _ => 0,
        };
        Edge { digest, index }
    }

    fn finish(mut self, root: Edge) -> Result<Definition, Error> {
        let last = result_bytes(&root);
        let mut metadata = OpMetadata::default();
        let mut need = |cap: &str| {
            metadata.caps.insert(cap.to_owned(), true);
        };
        need(caps::CONSTRAINTS);
        need(caps::PLATFORM);
        for said in self.definition.metadata.values() {
            if said.ignore_cache {
                need(caps::META_IGNORE_CACHE);
            }
            if !said.description.is_empty() {
                need(caps::META_DESCRIPTION);
            }
            if said.export_cache.is_some() {
                need(caps::META_EXPORT_CACHE);
            }
        }
        self.definition.metadata.insert(Digest::of(&last), metadata);
        self.definition.ops.push(last);
        self.definition.source.infos = self
            .maps
            .iter()
            .map(|map| SourceFile {
                filename: map.filename.clone(),
                data: map.data.clone(),
                language: map.language.clone(),
                definition: map.definition.clone().map(Box::new),
            })
            .collect();
        Ok(self.definition)
    }
}

/// The states a node uses, in the order in which their vertices are to be written.
fn states(spec: &Spec) -> Vec<&State> {
    match spec {
        Spec::Source(_) | Spec::Whole(..) => Vec::new(),
        Spec::Exec(exec) => sorted(exec)
            .into_iter()
            .filter_map(|at| match &exec.mounts[at].source {
                MountSource::State(state) | MountSource::Cache(_, state) => Some(state),
                MountSource::Tmpfs { .. } => None,
            })
            .collect(),
        Spec::File(file) => {
            let copied = file.actions.iter().filter_map(|action| match action {
                ActionSpec::Copy { from, .. } => Some(from),
                _ => None,
            });
            std::iter::once(&file.base).chain(copied).collect()
        }
        Spec::Merge(states) => states.iter().collect(),
        Spec::Diff { lower, upper } => vec![lower, upper],
    }
}

/// Positions of the mounts, by destination.
fn sorted(exec: &ExecSpec) -> Vec<usize> {
    let mut positions: Vec<usize> = (0..exec.mounts.len()).collect();
    positions.sort_by(|a, b| exec.mounts[*a].dest.cmp(&exec.mounts[*b].dest));
    positions
}

/// Whether the platform is part of the op's bytes.
fn is_for_a_platform(op: &Op) -> bool {
    match op {
        Op::Exec(_) => true,
        Op::Source(source) => matches!(source.scheme(), "docker-image" | "oci-layout"),
        Op::File(_) | Op::Merge(_) | Op::Diff(_) | Op::Build(_) | Op::Passthrough(_) => false,
    }
}

/// The inputs of the op being written.
struct Inputs<'a> {
    writer: &'a Writer,
    edges: Vec<Edge>,
}

impl Inputs<'_> {
    fn edge(&self, state: &State) -> Result<Option<Edge>, Error> {
        Ok(resolve(state)?.map(|(node, output)| self.writer.edge(&node, output)))
    }

    /// The position of the state's edge, added if it is new.
    fn shared(&mut self, state: &State) -> Result<Option<u32>, Error> {
        let Some(edge) = self.edge(state)? else {
            return Ok(None);
        };
        let position = self
            .edges
            .iter()
            .position(|known| *known == edge)
            .unwrap_or_else(|| {
                self.edges.push(edge);
                self.edges.len() - 1
            });
        Ok(Some(position as u32))
    }

    /// The position of the state's edge, always added: merges and diffs count every side.
    fn push(&mut self, state: &State) -> Result<Option<u32>, Error> {
        let Some(edge) = self.edge(state)? else {
            return Ok(None);
        };
        self.edges.push(edge);
        Ok(Some(self.edges.len() as u32 - 1))
    }

    fn exec(&mut self, spec: &ExecSpec) -> Result<ExecOp, Error> {
        if spec.meta.args.is_empty() || spec.meta.cwd.is_empty() {
            return Err(Error::Unfinished(
                "an exec without arguments or working directory".to_owned(),
            ));
        }
        let mut mounts = Vec::with_capacity(spec.mounts.len() + spec.secrets.len() + spec.ssh.len());
        let mut outputs = 0;
        for at in sorted(spec) {
            let mount = &spec.mounts[at];
            let (input, kind) = match &mount.source {
                MountSource::State(state) => (self.shared(state)?, MountKind::Bind),
                MountSource::Cache(cache, state) => (self.shared(state)?, MountKind::Cache(cache.clone())),
                MountSource::Tmpfs { size } => (None, MountKind::Tmpfs { size: *size }),
            };
            let output = mount.has_output().then(|| {
                outputs += 1;
                outputs - 1
            });
            mounts.push(Mount {
                input,
                selector: mount.selector.clone(),
                dest: mount.dest.clone(),
                output,
                readonly: mount.readonly,
                kind,
                content_cache: mount.content_cache,
            });
        }
        // Secret and ssh mounts carry output 0 on the wire: Go leaves the field unset.
        let special = |dest: &str, kind| Mount {
            input: None,
            selector: String::new(),
            dest: dest.to_owned(),
            output: Some(0),
            readonly: false,
            kind,
            content_cache: Default::default(),
        };
        mounts.extend(
            spec.secrets
                .iter()
                .map(|(dest, s)| special(dest, MountKind::Secret(s.clone()))),
        );
        let mut meta = spec.meta.clone();
        for (number, (dest, ssh)) in spec.ssh.iter().enumerate() {
            let dest = if dest.is_empty() {
                format!("/run/buildkit/ssh_agent.{number}")
            } else {
                dest.clone()
            };
            if number == 0 && !meta.env.iter().any(|env| env.starts_with("SSH_AUTH_SOCK=")) {
                meta.env.push(format!("SSH_AUTH_SOCK={dest}"));
            }
            mounts.push(special(&dest, MountKind::Ssh(ssh.clone())));
        }
        Ok(ExecOp {
            meta,
            mounts,
            network: spec.network,
            security: spec.security,
            secret_env: spec.secret_env.clone(),
            cdi_devices: spec.cdi_devices.clone(),
        })
    }

    fn file(&mut self, spec: &FileSpec) -> Result<FileOp, Error> {
        let base = self.shared(&spec.base)?;
        let last = spec.actions.len().checked_sub(1);
        let last = last.ok_or_else(|| Error::Unfinished("a file op without actions".to_owned()))?;
        let mut actions = Vec::with_capacity(spec.actions.len());
        for (number, action) in spec.actions.iter().enumerate() {
            let input = match number.checked_sub(1) {
                Some(before) => FileInput::Action(before as u32),
                None => base.map_or(FileInput::Scratch, FileInput::Input),
            };
            let (secondary_input, kind) = match action {
                ActionSpec::Copy { action, from, owner } => {
                    let from = self.shared(from)?.map_or(FileInput::Scratch, FileInput::Input);
                    let mut action = action.clone();
                    action.owner = chown(owner, base);
                    (from, FileActionKind::Copy(action))
                }
                ActionSpec::Mkfile { action, owner } => {
                    let mut action = action.clone();
                    action.owner = chown(owner, base);
                    (FileInput::Scratch, FileActionKind::Mkfile(action))
                }
                ActionSpec::Mkdir { action, owner } => {
                    let mut action = action.clone();
                    action.owner = chown(owner, base);
                    (FileInput::Scratch, FileActionKind::Mkdir(action))
                }
                ActionSpec::Rm(action) => (FileInput::Scratch, FileActionKind::Rm(action.clone())),
                ActionSpec::Symlink { action, owner } => {
                    let mut action = action.clone();
                    action.owner = chown(owner, base);
                    (FileInput::Scratch, FileActionKind::Symlink(action))
                }
            };
            let output = (number == last).then_some(0);
            actions.push(FileAction {
                input,
                secondary_input,
                output,
                kind,
            });
        }
        Ok(FileOp { actions })
    }
}

fn chown(owner: &Option<ChownSpec>, base: Option<u32>) -> Option<Chown> {
    let one = |owner: &Option<OwnerSpec>| {
        owner.as_ref().map(|owner| match owner {
            OwnerSpec::Id(id) => Owner::Id(*id),
            OwnerSpec::Name(name) => Owner::Name {
                name: name.clone(),
                input: base,
            },
        })
    };
    owner.as_ref().map(|chown| Chown {
        user: one(&chown.user),
        group: one(&chown.group),
    })
}

fn exec_caps(exec: &ExecSpec, node: &Node, need: &mut impl FnMut(&str)) {
    need(caps::EXEC_META_BASE);
    need(caps::EXEC_META_SETS_DEFAULT_PATH);
    let meta = &exec.meta;
    let mut when = |condition: bool, cap: &str| {
        if condition {
            need(cap);
        }
    };
    when(!meta.ulimits.is_empty(), caps::EXEC_META_ULIMIT);
    when(!meta.valid_exit_codes.is_empty(), caps::EXEC_VALID_EXIT_CODE);
    when(!meta.cgroup_parent.is_empty(), caps::EXEC_CGROUP_PARENT);
    when(meta.proxy_env.is_some(), caps::EXEC_META_PROXY);
    when(exec.network != NetMode::Sandbox, caps::EXEC_META_NETWORK);
    when(exec.security != SecurityMode::Sandbox, caps::EXEC_META_SECURITY);
    when(
        node.constraints.metadata.linux_resources.is_some(),
        caps::EXEC_META_LINUX_RESOURCES,
    );
    when(
        !exec.secrets.is_empty() || !exec.secret_env.is_empty(),
        caps::EXEC_MOUNT_SECRET,
    );
    when(!exec.secret_env.is_empty(), caps::EXEC_SECRET_ENV);
    when(!exec.ssh.is_empty(), caps::EXEC_MOUNT_SSH);
    when(!exec.cdi_devices.is_empty(), caps::EXEC_META_CDI);
    for mount in &exec.mounts {
        when(!mount.selector.is_empty(), caps::EXEC_MOUNT_SELECTOR);
        when(
            mount.content_cache != Default::default(),
            caps::EXEC_MOUNT_CONTENT_CACHE,
        );
        match &mount.source {
            MountSource::State(state) => when(!state.is_scratch(), caps::EXEC_MOUNT_BIND),
            MountSource::Cache(..) => {
                when(true, caps::EXEC_MOUNT_CACHE);
                when(true, caps::EXEC_MOUNT_CACHE_SHARING);
            }
            MountSource::Tmpfs { size } => {
                when(true, caps::EXEC_MOUNT_TMPFS);
                when(*size > 0, caps::EXEC_MOUNT_TMPFS_SIZE);
            }
        }
    }
}

fn file_caps(file: &FileSpec, need: &mut impl FnMut(&str)) {
    need(caps::FILE_BASE);
    for action in &file.actions {
        match action {
            ActionSpec::Copy { action, .. } => {
                if !action.include_patterns.is_empty() || !action.exclude_patterns.is_empty() {
                    need(caps::FILE_COPY_INCLUDE_EXCLUDE);
                }
                if !action.required_paths.is_empty() {
                    need(caps::FILE_COPY_REQUIRED_PATHS);
                }
                if action.always_replace_existing {
                    need(caps::FILE_COPY_REPLACE);
                }
                if !action.mode_str.is_empty() {
                    need(caps::FILE_COPY_MODE_STRING);
                }
            }
            ActionSpec::Symlink { .. } => need(caps::FILE_SYMLINK_CREATE),
            ActionSpec::Mkfile { .. } | ActionSpec::Mkdir { .. } | ActionSpec::Rm(_) => {}
        }
    }
}

//! What a description says a container needs, put into the description of the step.
//!
//! | edit | becomes |
//! |---|---|
//! | variable | of the environment, over the step's own |
//! | node | the machine's node bound in, and leave to open it |
//! | mount | a bind |
//! | group | a further group of the user |
//! | hook | handed to another OCI runtime; the built-in executor refuses |
//! | network device, Intel RDT | refused |
use super::file::{Edits, HookEdit, MountEdit, Node, Registry};
use super::{DeviceError, DeviceGrants};
use llb::op::CdiDevice;
use sandbox::{
    Spec,
    spec::{DeviceKind, DeviceNode, Hook, Mount, MountFlags, Source},
};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::Arc;

/// Gives the step the devices it wants; what could not be had as described is answered in plain words.
pub(crate) fn apply(
    spec: &mut Spec,
    wanted: &[CdiDevice],
    registry: &Registry,
    grants: &DeviceGrants,
) -> Result<Vec<String>, DeviceError> {
    let (mut notes, mut files) = (Vec::new(), Vec::new());
    for name in grants.resolve(wanted, registry)? {
        let device = &registry.devices[&name];
        edit(spec, &name, &device.edits, &mut notes)?;
        if !files.iter().any(|seen| Arc::ptr_eq(seen, &device.file)) {
            files.push(device.file.clone());
            edit(spec, &name, &device.file.container_edits, &mut notes)?;
        }
    }
    // Parents come first.
    spec.mounts.sort_by(|a, b| a.target.cmp(&b.target));
    Ok(notes)
}

fn edit(spec: &mut Spec, device: &str, edits: &Edits, notes: &mut Vec<String>) -> Result<(), DeviceError> {
    let refused = |what: &str| DeviceError::Unsupported {
        device: device.to_owned(),
        reason: format!("{what} cannot be given to steps"),
    };
    if !edits.net_devices.is_empty() {
        return Err(refused("network devices"));
    }
    if edits.intel_rdt.is_some() {
        return Err(refused("classes of Intel RDT"));
    }
    for variable in &edits.env {
        let name = variable.split('=').next().unwrap_or_default();
        spec.env.retain(|known| known.split('=').next() != Some(name));
        spec.env.push(variable.clone());
    }
    for described in &edits.device_nodes {
        let made = node(device, described, notes)?;
        spec.devices.retain(|known| known.path != made.path);
        spec.devices.push(made);
    }
    for described in &edits.mounts {
        let made = mount(device, described)?;
        spec.mounts.retain(|known| known.target != made.target);
        spec.mounts.push(made);
    }
    for group in &edits.additional_gids {
        if *group != 0 && !spec.user.groups.contains(group) {
            spec.user.groups.push(*group);
        }
    }
    spec.hooks.extend(edits.hooks.iter().map(hook));
    Ok(())
}

/// Numbers and kind come from the machine's node; where the description has them, too, they must agree.
fn node(device: &str, node: &Node, notes: &mut Vec<String>) -> Result<DeviceNode, DeviceError> {
    let source = node.host_path.clone().unwrap_or_else(|| node.path.clone());
    let refused = |reason: String| DeviceError::Unsupported {
        device: device.to_owned(),
        reason,
    };
    if !node.path.starts_with('/') {
        return Err(refused(format!("node {:?} is not absolute", node.path)));
    }
    let meta = std::fs::symlink_metadata(&source).map_err(|error| DeviceError::Node {
        device: device.to_owned(),
        path: source.clone(),
        source: error,
    })?;
    let kind = match meta.file_type() {
        kind if kind.is_char_device() => DeviceKind::Character,
        kind if kind.is_block_device() => DeviceKind::Block,
        _ => return Err(refused(format!("{source} is no device"))),
    };
    let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    let is_other_kind = node.r#type.as_deref().is_some_and(|letter| match letter {
        "c" | "u" => kind != DeviceKind::Character,
        "b" => kind != DeviceKind::Block,
        _ => true,
    });
    let differs =
        |described: Option<u32>, found| described.is_some_and(|number| number != 0 && number != found);
    if is_other_kind || differs(node.major, major) || differs(node.minor, minor) {
        return Err(refused(format!(
            "{source} is another device than described ({major}:{minor})"
        )));
    }
    let differs = |described: Option<u32>, found| described.is_some_and(|number| number != found);
    if differs(node.uid, meta.uid())
        || differs(node.gid, meta.gid())
        || differs(node.file_mode.map(|mode| mode & 0o777), meta.mode() & 0o777)
    {
        notes.push(format!(
            "device {device}: {} keeps the owner and mode it has on this machine",
            node.path
        ));
    }
    let access = node
        .permissions
        .as_deref()
        .filter(|text| !text.is_empty())
        .unwrap_or("rwm");
    if !access.chars().all(|letter| "rwm".contains(letter)) {
        return Err(refused(format!("permissions {access:?} are not of r, w and m")));
    }
    Ok(DeviceNode {
        path: node.path.clone(),
        source: source.into(),
        kind,
        major,
        minor,
        may_read: access.contains('r'),
        may_write: access.contains('w'),
    })
}

fn mount(device: &str, mount: &MountEdit) -> Result<Mount, DeviceError> {
    let refused = |reason: String| DeviceError::Unsupported {
        device: device.to_owned(),
        reason: format!("mount {}: {reason}", mount.container_path),
    };
    if !matches!(mount.r#type.as_str(), "" | "bind" | "none") {
        return Err(refused(format!("type {:?} is not supported", mount.r#type)));
    }
    let (mut flags, mut readonly) = (MountFlags::default(), false);
    for option in &mount.options {
        match option.as_str() {
            "ro" => readonly = true,
            "nosuid" => flags.nosuid = true,
            "nodev" => flags.nodev = true,
            "noexec" => flags.noexec = true,
            // Mounts of a step are private anyway, and whole trees.
            "rw" | "bind" | "rbind" | "private" | "rprivate" | "suid" | "dev" | "exec" => {}
            other => return Err(refused(format!("option {other:?} is not supported"))),
        }
    }
    if !mount.container_path.starts_with('/') || !mount.host_path.starts_with('/') {
        return Err(refused("its paths are not absolute".to_owned()));
    }
    Ok(Mount {
        target: mount.container_path.clone(),
        source: Source::Bind {
            path: mount.host_path.clone().into(),
            subpath: String::new(),
        },
        readonly,
        flags,
    })
}

fn hook(hook: &HookEdit) -> Hook {
    Hook {
        stage: hook.hook_name.clone(),
        path: hook.path.clone(),
        args: hook.args.clone(),
        env: hook.env.clone(),
        timeout_seconds: hook.timeout,
    }
}

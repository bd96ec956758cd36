//! An encoded file op to [`FileOp`].

use super::Door;
use crate::error::Error;
use crate::generated as pb;
use crate::op::{
    Chown, CopyAction, FileAction, FileActionKind, FileInput, FileOp, MkdirAction, MkfileAction, Owner,
    RmAction, SymlinkAction,
};

pub(super) fn file(door: Door, wire: pb::FileOp) -> Result<FileOp, Error> {
    if wire.actions.is_empty() {
        return Err(door.invalid("a file op without actions"));
    }
    door.count("actions of one file op", wire.actions.len())?;
    let actions = wire
        .actions
        .into_iter()
        .enumerate()
        .map(|(number, wire)| action(door, number, wire))
        .collect::<Result<Vec<_>, _>>()?;
    let mut outputs: Vec<u32> = actions.iter().filter_map(|action| action.output).collect();
    outputs.sort_unstable();
    if outputs.is_empty()
        || outputs
            .iter()
            .enumerate()
            .any(|(i, output)| i != *output as usize)
    {
        return Err(door.invalid("a file op whose outputs are not numbered 0, 1, 2 …"));
    }
    Ok(FileOp { actions })
}

fn action(door: Door, number: usize, wire: pb::FileAction) -> Result<FileAction, Error> {
    let input = file_input(door, number, wire.input)?;
    let secondary_input = file_input(door, number, wire.secondary_input)?;
    let output = door.output(&format!("file action {number}"), wire.output)?;
    let kind = match wire.action {
        None => return Err(door.invalid(format!("file action {number} says nothing of what is to be done"))),
        Some(pb::file_action::Action::Copy(copy)) => FileActionKind::Copy(copy_action(door, copy)?),
        Some(pb::file_action::Action::Mkfile(m)) => FileActionKind::Mkfile(MkfileAction {
            path: m.path,
            mode: m.mode,
            data: m.data,
            owner: chown(door, m.owner)?,
            timestamp: m.timestamp,
        }),
        Some(pb::file_action::Action::Mkdir(m)) => FileActionKind::Mkdir(MkdirAction {
            path: m.path,
            mode: m.mode,
            make_parents: m.make_parents,
            owner: chown(door, m.owner)?,
            timestamp: m.timestamp,
        }),
        Some(pb::file_action::Action::Rm(r)) => FileActionKind::Rm(RmAction {
            path: r.path,
            allow_not_found: r.allow_not_found,
            allow_wildcard: r.allow_wildcard,
        }),
        Some(pb::file_action::Action::Symlink(s)) => FileActionKind::Symlink(SymlinkAction {
            oldpath: s.oldpath,
            newpath: s.newpath,
            owner: chown(door, s.owner)?,
            timestamp: s.timestamp,
        }),
    };
    Ok(FileAction {
        input,
        secondary_input,
        output,
        kind,
    })
}

/// Positions count the op's inputs first, then the results of its actions; only earlier ones may be used.
fn file_input(door: Door, number: usize, index: i64) -> Result<FileInput, Error> {
    let bad = || {
        let inputs = door.inputs;
        door.invalid(format!(
            "file action {number} works on {index}, with {inputs} inputs and {number} earlier actions"
        ))
    };
    match index {
        -1 => Ok(FileInput::Scratch),
        index => {
            let position = usize::try_from(index).map_err(|_| bad())?;
            match position.checked_sub(door.inputs) {
                None => Ok(FileInput::Input(u32::try_from(position).map_err(|_| bad())?)),
                Some(action) if action < number => {
                    Ok(FileInput::Action(u32::try_from(action).map_err(|_| bad())?))
                }
                Some(_) => Err(bad()),
            }
        }
    }
}

fn copy_action(door: Door, c: pb::FileActionCopy) -> Result<CopyAction, Error> {
    Ok(CopyAction {
        src: c.src,
        dest: c.dest,
        owner: chown(door, c.owner)?,
        mode: c.mode,
        mode_str: c.mode_str,
        follow_symlink: c.follow_symlink,
        dir_copy_contents: c.dir_copy_contents,
        attempt_unpack: c.attempt_unpack_docker_compatibility,
        create_dest_path: c.create_dest_path,
        allow_wildcard: c.allow_wildcard,
        allow_empty_wildcard: c.allow_empty_wildcard,
        timestamp: c.timestamp,
        include_patterns: c.include_patterns,
        exclude_patterns: c.exclude_patterns,
        always_replace_existing: c.always_replace_existing_dest_paths,
        required_paths: c.required_paths,
    })
}

fn chown(door: Door, wire: Option<pb::ChownOpt>) -> Result<Option<Chown>, Error> {
    let Some(wire) = wire else { return Ok(None) };
    Ok(Some(Chown {
        user: owner(door, wire.user)?,
        group: owner(door, wire.group)?,
    }))
}

fn owner(door: Door, wire: Option<pb::UserOpt>) -> Result<Option<Owner>, Error> {
    match wire {
        None => Ok(None),
        Some(pb::UserOpt { user: None }) => Ok(Some(Owner::Id(0))),
        Some(pb::UserOpt {
            user: Some(pb::user_opt::User::ById(id)),
        }) => Ok(Some(Owner::Id(id))),
        Some(pb::UserOpt {
            user: Some(pb::user_opt::User::ByName(named)),
        }) => Ok(Some(Owner::Name {
            input: door.input("where an owner's name is looked up", named.input)?,
            name: named.name,
        })),
    }
}

//! The key of a file op.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Dep;
use super::json::{self, Object};
use super::selector::{PathSelector, dedupe, has_wildcards, joined};
use crate::encode::file_index;
use crate::op::{Chown, CopyAction, FileAction, FileActionKind, FileInput, FileOp, Owner};

/// What is hashed.
pub(super) fn text(op: &FileOp, inputs: usize) -> String {
    let actions = op
        .actions
        .iter()
        .map(|action| json::string(&STANDARD.encode(action_text(action))));
    let mut object = Object::default()
        .raw("Type", json::string("buildkit.file.v0"))
        .array("Actions", actions);
    let indexes: Vec<[i64; 3]> = op.actions.iter().map(|action| triple(action, inputs)).collect();
    if !is_usual_chain(&indexes) {
        let indexes = indexes
            .iter()
            .map(|[input, secondary, output]| format!("[{input},{secondary},{output}]"));
        object = object.array("indexes", indexes);
    }
    object.finish()
}

fn triple(action: &FileAction, inputs: usize) -> [i64; 3] {
    let output = action.output.map_or(-1, i64::from);
    [
        file_index(action.input, inputs),
        file_index(action.secondary_input, inputs),
        output,
    ]
}

/// Each action on the result of the one before, copies all from the same side, the last one given out:
/// then the positions say nothing that the actions do not, and old keys without them stay valid.
///
/// BuildKit counts results of actions from the number of *actions* here, not of inputs. Keys have to be
/// equal, so do we.
fn is_usual_chain(indexes: &[[i64; 3]]) -> bool {
    let actions = indexes.len();
    !indexes.is_empty()
        && indexes
            .iter()
            .enumerate()
            .all(|(number, [input, secondary, output])| {
                let follows = *input
                    == if number == 0 {
                        0
                    } else {
                        (actions + number - 1) as i64
                    };
                let from_usual_side = *secondary == -1 || *secondary == 1;
                let gives_out = *output == if number + 1 == actions { 0 } else { -1 };
                follows && from_usual_side && gives_out
            })
}

fn action_text(action: &FileAction) -> String {
    match &action.kind {
        FileActionKind::Copy(copy) => copy_text(copy, matches!(action.secondary_input, FileInput::Input(_))),
        FileActionKind::Mkfile(mkfile) => Object::default()
            .text("path", &mkfile.path)
            .signed("mode", i64::from(mkfile.mode))
            .text("data", &STANDARD.encode(&mkfile.data))
            .object("owner", chown(&mkfile.owner))
            .signed("timestamp", mkfile.timestamp)
            .finish(),
        FileActionKind::Mkdir(mkdir) => Object::default()
            .text("path", &mkdir.path)
            .signed("mode", i64::from(mkdir.mode))
            .flag("makeParents", mkdir.make_parents)
            .object("owner", chown(&mkdir.owner))
            .signed("timestamp", mkdir.timestamp)
            .finish(),
        FileActionKind::Rm(rm) => Object::default()
            .text("path", &rm.path)
            .flag("allowNotFound", rm.allow_not_found)
            .flag("allowWildcard", rm.allow_wildcard)
            .finish(),
        FileActionKind::Symlink(link) => Object::default()
            .text("oldpath", &link.oldpath)
            .text("newpath", &link.newpath)
            .object("owner", chown(&link.owner))
            .signed("timestamp", link.timestamp)
            .finish(),
    }
}

fn copy_text(copy: &CopyAction, from_input: bool) -> String {
    let src = if from_input {
        base_name(&copy.src)
    } else {
        &copy.src
    };
    Object::default()
        .text("src", src)
        .text("dest", &copy.dest)
        .object("owner", chown(&copy.owner))
        .signed("mode", i64::from(copy.mode))
        .flag("followSymlink", copy.follow_symlink)
        .flag("dirCopyContents", copy.dir_copy_contents)
        .flag("attemptUnpackDockerCompatibility", copy.attempt_unpack)
        .flag("createDestPath", copy.create_dest_path)
        .flag("allowWildcard", copy.allow_wildcard)
        .flag("allowEmptyWildcard", copy.allow_empty_wildcard)
        .signed("timestamp", copy.timestamp)
        .texts("include_patterns", &copy.include_patterns)
        .texts("exclude_patterns", &copy.exclude_patterns)
        .flag("alwaysReplaceExistingDestPaths", copy.always_replace_existing)
        .text("modeStr", &copy.mode_str)
        .texts("required_paths", &copy.required_paths)
        .finish()
}

/// The last part of a path; `.` of an empty one, `/` of the root.
fn base_name(path: &str) -> &str {
    let trimmed = path.trim_end_matches('/');
    match (path.is_empty(), trimmed.is_empty()) {
        (true, _) => ".",
        (false, true) => "/",
        (false, false) => trimmed.rsplit('/').next().unwrap_or(trimmed),
    }
}

fn chown(owner: &Option<Chown>) -> Option<Object> {
    let one = |owner: &Owner| {
        let user = match owner {
            Owner::Id(id) => Object::default().unsigned("byId", *id),
            Owner::Name { name, input } => {
                let named = Object::default()
                    .text("name", name)
                    .signed("input", super::index(*input));
                Object::default().object("byName", Some(named))
            }
        };
        Object::default().object("User", Some(user))
    };
    owner.as_ref().map(|chown| {
        Object::default()
            .object("user", chown.user.as_ref().map(one))
            .object("group", chown.group.as_ref().map(one))
    })
}

/// How each input takes part: the paths copied from it. An input that an action changes takes part as a
/// whole, so it has neither selector nor content key.
pub(super) fn deps(op: &FileOp, deps: &mut [Dep]) {
    let mut selectors: BTreeMap<usize, Vec<PathSelector>> = BTreeMap::new();
    let mut changed = vec![false; deps.len()];
    for action in &op.actions {
        if let FileInput::Input(input) = action.input
            && let Some(changed) = changed.get_mut(input as usize)
        {
            *changed = true;
        }
        for (input, path) in owner_lookups(action) {
            let lookup = PathSelector {
                path: path.to_owned(),
                follow_links: true,
                ..PathSelector::default()
            };
            selectors.entry(input).or_default().push(lookup);
        }
        if let (FileActionKind::Copy(copy), FileInput::Input(input)) = (&action.kind, action.secondary_input)
        {
            selectors.entry(input as usize).or_default().push(PathSelector {
                path: copy.src.clone(),
                wildcard: copy.allow_wildcard && has_wildcards(&copy.src),
                follow_links: copy.follow_symlink,
                include_patterns: copy.include_patterns.clone(),
                exclude_patterns: copy.exclude_patterns.clone(),
                required_paths: copy.required_paths.clone(),
            });
        }
    }
    for (input, selectors) in selectors {
        if changed.get(input).copied().unwrap_or(true) {
            continue;
        }
        let mut paths: Vec<String> = selectors.iter().map(|selector| selector.path.clone()).collect();
        paths.sort_by(|a, b| b.cmp(a));
        deps[input] = Dep {
            selector: Some(joined(paths)),
            content: Some(reduced(selectors)),
        };
    }
}

/// Where names of owners are looked up.
fn owner_lookups(action: &FileAction) -> Vec<(usize, &'static str)> {
    let owner = match &action.kind {
        FileActionKind::Copy(copy) => &copy.owner,
        FileActionKind::Mkfile(mkfile) => &mkfile.owner,
        FileActionKind::Mkdir(mkdir) => &mkdir.owner,
        FileActionKind::Rm(_) | FileActionKind::Symlink(_) => return Vec::new(),
    };
    let Some(owner) = owner else { return Vec::new() };
    let lookup = |owner: &Option<Owner>, path| match owner {
        Some(Owner::Name {
            input: Some(input), ..
        }) => Some((*input as usize, path)),
        _ => None,
    };
    lookup(&owner.user, "/etc/passwd")
        .into_iter()
        .chain(lookup(&owner.group, "/etc/group"))
        .collect()
}

/// Plain paths without those inside others; filtered ones as they are; all by path.
fn reduced(selectors: Vec<PathSelector>) -> Vec<PathSelector> {
    let plain = |follow_links: bool| {
        let paths = selectors
            .iter()
            .filter(|s| !s.is_filtered() && s.follow_links == follow_links);
        let paths = dedupe(paths.map(|s| s.path.clone()).collect());
        paths.into_iter().map(move |path| PathSelector {
            path,
            follow_links,
            ..PathSelector::default()
        })
    };
    let filtered = selectors
        .iter()
        .filter(|selector| selector.is_filtered())
        .cloned();
    let mut all: Vec<PathSelector> = plain(false).chain(plain(true)).chain(filtered).collect();
    all.sort_by(|a, b| a.path.cmp(&b.path));
    all
}

//! File ops: a chain of actions, each on the result of the one before, the last one given out.

use crate::op::{CopyAction, MkdirAction, MkfileAction, RmAction, SymlinkAction};
use crate::state::{Constraints, Spec, State};

/// Actions in order, the first on `base`. Paths must be absolute.
#[derive(Clone, Debug, Default)]
pub struct FileSpec {
    /// What the first action changes.
    pub base: State,
    /// The actions, at least one.
    pub actions: Vec<ActionSpec>,
}

/// One action. Owners inside the actions are left `None` and given beside them, because a name is looked
/// up in an input, and which number that input has is known only when the op is written.
#[derive(Clone, Debug)]
pub enum ActionSpec {
    /// Copies from `from`.
    Copy {
        /// What is copied.
        action: CopyAction,
        /// Where it is taken from.
        from: State,
        /// New owner.
        owner: Option<ChownSpec>,
    },
    /// Makes a file.
    Mkfile {
        /// Which.
        action: MkfileAction,
        /// Owner.
        owner: Option<ChownSpec>,
    },
    /// Makes a directory.
    Mkdir {
        /// Which.
        action: MkdirAction,
        /// Owner.
        owner: Option<ChownSpec>,
    },
    /// Removes files.
    Rm(RmAction),
    /// Makes a symbolic link.
    Symlink {
        /// Which.
        action: SymlinkAction,
        /// Owner.
        owner: Option<ChownSpec>,
    },
}

/// A new owner; names are looked up in the op's base.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChownSpec {
    /// The user.
    pub user: Option<OwnerSpec>,
    /// The group.
    pub group: Option<OwnerSpec>,
}

/// A user or group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnerSpec {
    /// By number.
    Id(u32),
    /// By name.
    Name(String),
}

impl FileSpec {
    /// Adds the op to the graph.
    pub fn state(self, constraints: Constraints) -> State {
        State::output_of(Spec::File(Box::new(self)), constraints)
    }
}

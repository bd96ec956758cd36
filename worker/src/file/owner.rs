//! Who is to own what an action makes.
//!
//! A name is looked up in the image's own `/etc/passwd` or `/etc/group`; one that is not there silently is 0, as in
//! BuildKit. A user by number gives the group the same number, unless a group is named.

use cache::view::{View, groups, passwd};
use llb::op::{Chown, Owner};

use super::FileError;

/// A user and a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// Finds the ids that `chown` asks for; `view_of` gives the root file system of an input.
///
/// # Errors
/// A name where no input has names; those of reading the two files; a file of more than 10 MiB is one.
pub fn find_owner(
    chown: Option<&Chown>,
    view_of: &mut dyn FnMut(u32) -> Result<View, FileError>,
) -> Result<Option<Ids>, FileError> {
    let Some(chown) = chown else { return Ok(None) };
    let mut ids = Ids { uid: 0, gid: 0 };
    match &chown.user {
        Some(Owner::Id(id)) => ids = Ids { uid: *id, gid: *id },
        Some(Owner::Name {
            name,
            input: Some(input),
        }) => {
            let accounts = passwd(&view_of(*input)?)?;
            if let Some(account) = accounts.iter().find(|account| account.name == *name) {
                ids = Ids {
                    uid: account.uid,
                    gid: account.gid,
                };
            }
        }
        Some(Owner::Name { name, input: None }) => return Err(FileError::NobodyHere { name: name.clone() }),
        None => {}
    }
    match &chown.group {
        Some(Owner::Id(id)) => ids.gid = *id,
        Some(Owner::Name {
            name,
            input: Some(input),
        }) => {
            let groups = groups(&view_of(*input)?)?;
            if let Some(group) = groups.iter().find(|group| group.name == *name) {
                ids.gid = group.gid;
            }
        }
        Some(Owner::Name { name, input: None }) => return Err(FileError::NobodyHere { name: name.clone() }),
        None => {}
    }
    Ok(Some(ids))
}

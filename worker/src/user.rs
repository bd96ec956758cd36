//! Whom a step runs as: `USER` looked up in the image's own passwd and group.
//!
//! | given | user | group | further groups |
//! |---|---|---|---|
//! | nothing | 0 | of root's line, or 0 | of root |
//! | `name` or a uid that has a line | of its line | of its line | those that list it |
//! | a uid without a line | it | 0 | none |
//! | anything`:group` | as above | that group | none |
use cache::{
    layer::LayerError,
    view::{Account, View, groups, passwd},
};
use sandbox::spec::User;

/// A user and where it is at home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunUser {
    pub(crate) user: User,
    pub(crate) home: String,
}

/// Why there is no such user.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    #[error(transparent)]
    Layer(#[from] LayerError),
}

/// Finds the user that `text` (`user[:group]`, names or numbers) means in an image.
pub(crate) fn find_user(view: &View, text: &str) -> Result<RunUser, UserError> {
    let (name, group) = match text.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (text, None),
    };
    let accounts = passwd(view)?;
    let number = if name.is_empty() {
        Some(0)
    } else {
        name.parse::<u32>().ok()
    };
    let by_name = accounts
        .iter()
        .find(|account| !name.is_empty() && account.name == name);
    let account = by_name.or_else(|| accounts.iter().find(|account| Some(account.uid) == number));
    let uid = match (account, number) {
        (Some(account), _) => account.uid,
        (None, Some(number)) if number <= MAX_ID => number,
        _ => return Err(UserError::NoUser(name.to_owned())),
    };
    let home = account
        .map(|account| account.home.clone())
        .filter(|home| !home.is_empty());
    let mut user = User {
        uid,
        gid: account.map_or(0, |account| account.gid),
        groups: Vec::new(),
    };
    match group {
        Some(group) if !group.is_empty() => user.gid = find_group(view, group)?,
        _ => user.groups = groups_of(view, account)?,
    }
    Ok(RunUser {
        user,
        home: home.unwrap_or_else(|| "/".to_owned()),
    })
}

/// The greatest id there may be; what is above could turn into root where ids are 32 bits signed.
const MAX_ID: u32 = (1 << 31) - 2;

fn find_group(view: &View, name: &str) -> Result<u32, UserError> {
    let groups = groups(view)?;
    if let Some(group) = groups.iter().find(|group| group.name == name) {
        return Ok(group.gid);
    }
    match name.parse::<u32>() {
        Ok(number) if number <= MAX_ID => Ok(number),
        _ => Err(UserError::NoGroup(name.to_owned())),
    }
}

fn groups_of(view: &View, account: Option<&Account>) -> Result<Vec<u32>, UserError> {
    let Some(account) = account else {
        return Ok(Vec::new());
    };
    let listed = groups(view)?;
    let mine = listed
        .iter()
        .filter(|group| group.members.contains(&account.name) && group.gid != account.gid);
    Ok(mine.map(|group| group.gid).collect())
}

//! The users and groups of an image, from its own `/etc/passwd` and `/etc/group`.
//!
//! Read beneath the image's root, regular files only, at most 10 MiB each; a line that is malformed is skipped, as the C
//! library does.

use tree::RootPath;

use super::View;
use crate::layer::LayerError;

/// The most bytes of a passwd or group file that are read.
const MAX_BYTES: u64 = 10 * 1024 * 1024;

/// One line of `/etc/passwd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Home directory.
    pub home: String,
}

/// One line of `/etc/group`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Name.
    pub name: String,
    /// Group id.
    pub gid: u32,
    /// Login names of its members.
    pub members: Vec<String>,
}

/// The accounts of a root file system; none if it has no `/etc/passwd`.
///
/// # Errors
/// Those of reading, and [`LayerError::Limit`].
pub fn passwd(view: &View) -> Result<Vec<Account>, LayerError> {
    Ok(lines(view, "etc/passwd")?
        .iter()
        .filter_map(|line| parse_account(line))
        .collect())
}

/// The groups of a root file system; none if it has no `/etc/group`.
///
/// # Errors
/// Those of reading, and [`LayerError::Limit`].
pub fn groups(view: &View) -> Result<Vec<Group>, LayerError> {
    Ok(lines(view, "etc/group")?
        .iter()
        .filter_map(|line| parse_group(line))
        .collect())
}

fn lines(view: &View, path: &str) -> Result<Vec<String>, LayerError> {
    let path = RootPath::clean(path).expect("a literal path is clean");
    let bytes = view.read_small(&path, MAX_BYTES)?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes)
        .lines()
        .map(str::to_owned)
        .collect())
}

fn parse_account(line: &str) -> Option<Account> {
    let mut fields = line.trim().split(':');
    let name = fields
        .next()
        .filter(|name| !name.is_empty() && !name.starts_with('#'))?
        .to_owned();
    let _password = fields.next()?;
    let uid = fields.next()?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let home = fields.nth(1).unwrap_or_default().to_owned();
    Some(Account { name, uid, gid, home })
}

fn parse_group(line: &str) -> Option<Group> {
    let mut fields = line.trim().split(':');
    let name = fields
        .next()
        .filter(|name| !name.is_empty() && !name.starts_with('#'))?
        .to_owned();
    let _password = fields.next()?;
    let gid = fields.next()?.parse().ok()?;
    let members = fields
        .next()
        .unwrap_or_default()
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned);
    Some(Group {
        name,
        gid,
        members: members.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_passwd_and_group() {
        let account = parse_account("app:x:1000:50:The App:/home/app:/bin/sh").expect("whole");
        assert_eq!(
            (
                account.name.as_str(),
                account.uid,
                account.gid,
                account.home.as_str()
            ),
            ("app", 1000, 50, "/home/app")
        );
        assert_eq!(
            parse_account("short:x:1:2").map(|account| account.home),
            Some(String::new())
        );
        for bad in ["", "# note", "x:y", "a:x:no:1::/:", "a:x:-1:1::/:", "+::::::"] {
            assert_eq!(parse_account(bad), None, "{bad}");
        }
        let group = parse_group("wheel:x:10:root,app").expect("whole");
        assert_eq!(
            (group.gid, group.members),
            (10, vec!["root".to_owned(), "app".to_owned()])
        );
        assert_eq!(parse_group("empty:x:5:").map(|group| group.members), Some(vec![]));
    }
}

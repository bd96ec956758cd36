//! What remotes and refs are, told from their text alone: which remotes may be asked, and which object a ref names in the
//! answer of `git ls-remote`.

/// What a ref names at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resolved {
    /// The object that is fetched: a commit, or the tag object that names it.
    pub(super) object: String,
    /// The ref by its full name; the object itself if it was asked for by commit.
    pub(super) reference: String,
    /// What enters the key.
    pub(super) commit: String,
}

/// Whether a remote is reached over the network, by a protocol that runs nothing of its own here.
pub(super) fn is_transport(remote: &str) -> bool {
    let known = ["http://", "https://", "ssh://", "git://"]
        .iter()
        .any(|scheme| remote.starts_with(scheme));
    // user@host:path, the short form of ssh
    let short = !remote.contains("://")
        && remote
            .split_once(':')
            .is_some_and(|(host, _)| host.contains('@') && !host.contains('/'));
    known || short
}

/// Whether the text is the whole name of an object.
pub(super) fn is_commit(text: &str) -> bool {
    (text.len() == 40 || text.len() == 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What `ls-remote` says of a ref: branches before tags, a full name before both; tags by what they point to.
pub(super) fn choose(listed: &str, wanted: &str) -> Option<Resolved> {
    let lines: Vec<(&str, &str)> = listed.lines().filter_map(|line| line.split_once('\t')).collect();
    let find = |name: &str| {
        lines
            .iter()
            .find(|(_, found)| *found == name)
            .map(|(commit, _)| (*commit).to_owned())
    };
    if wanted.is_empty() {
        let commit = lines
            .iter()
            .find(|(what, name)| *name == "HEAD" && !what.starts_with("ref: "))?
            .0
            .to_owned();
        let branch = lines
            .iter()
            .find_map(|(what, name)| what.strip_prefix("ref: ").filter(|_| *name == "HEAD"));
        let reference = branch.unwrap_or("HEAD").to_owned();
        return Some(Resolved {
            object: commit.clone(),
            reference,
            commit,
        });
    }
    let full = format!("refs/{}", wanted.strip_prefix("refs/").unwrap_or(wanted));
    let head = format!(
        "refs/heads/{}",
        wanted.strip_prefix("refs/heads/").unwrap_or(wanted)
    );
    let tag = format!(
        "refs/tags/{}",
        wanted.strip_prefix("refs/tags/").unwrap_or(wanted)
    );
    let name = [&full, &head, &tag]
        .into_iter()
        .find(|name| find(name).is_some())?;
    let object = find(name)?;
    let commit = find(&format!("{name}^{{}}")).unwrap_or_else(|| object.clone());
    Some(Resolved {
        object,
        reference: name.clone(),
        commit,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refs_are_chosen_as_git_does() {
        let (a, b, c) = ("a".repeat(40), "b".repeat(40), "c".repeat(40));
        let listed = format!(
            "{a}\trefs/heads/v1\n{b}\trefs/tags/v1\n{c}\trefs/tags/v1^{{}}\n{b}\trefs/tags/v2\n{c}\trefs/tags/v2^{{}}\n"
        );
        let of =
            |wanted: &str| choose(&listed, wanted).map(|found| (found.object, found.reference, found.commit));
        assert_eq!(of("v1"), Some((a.clone(), "refs/heads/v1".into(), a.clone())));
        assert_eq!(of("tags/v1"), Some((b.clone(), "refs/tags/v1".into(), c.clone())));
        assert_eq!(of("v2"), Some((b.clone(), "refs/tags/v2".into(), c.clone())));
        assert_eq!(of("v3"), None);
        let head = format!("ref: refs/heads/main\tHEAD\n{a}\tHEAD\n");
        assert_eq!(
            choose(&head, "").map(|found| (found.object, found.reference)),
            Some((a, "refs/heads/main".into()))
        );
    }

    #[test]
    fn only_remotes_over_the_network_are_transports() {
        for remote in [
            "https://h/r",
            "http://h/r.git",
            "ssh://git@h/r",
            "git@h:r.git",
            "git://h/r",
        ] {
            assert!(is_transport(remote), "{remote}");
        }
        for remote in ["file:///etc", "/etc", "ext::sh -c true", "h:r", "../r@x:y", ""] {
            assert!(!is_transport(remote), "{remote}");
        }
    }
}

//! Tokens that are kept: for one user, and for whoever proves to be the same.
//!
//! ```text
//! challenge ─▶ authority? ─┬─ proven ─▶ shared shelf, by its key ┐
//!                          └─ no, or not proven ─▶ own shelf ────┴─▶ token that is still good, or a fresh one
//! ```
//!
//! Questions for one token wait for each other, so that many layers of an image need one token, not one each. Tokens lie
//! in memory only.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::auth::{Authority, Authorization};

/// A token that says nothing lasts this long (distribution-spec, token authentication).
const DEFAULT_SECONDS: u64 = 60;
/// Nothing is kept longer.
const MOST_SECONDS: u64 = 3600;
/// A token is renewed when it has less than this left.
const MARGIN: Duration = Duration::from_secs(10);
/// The most tokens on one shelf; beyond it those are forgotten that run out first.
const MOST_TOKENS: usize = 1024;

#[derive(Clone, PartialEq, Eq, Hash)]
struct Name {
    /// Whose it is; on a user's own shelf nobody's in particular.
    key: Option<[u8; 32]>,
    host: String,
    scopes: Vec<String>,
}

struct Kept {
    authorization: Authorization,
    until: Instant,
}

/// Tokens by host and scopes.
#[derive(Default)]
pub(crate) struct Shelf {
    kept: Mutex<HashMap<Name, Kept>>,
}

impl Shelf {
    fn get(&self, name: &Name) -> Option<Authorization> {
        let kept = self.kept.lock();
        let found = kept.get(name)?;
        (found.until > Instant::now() + MARGIN).then(|| found.authorization.clone())
    }

    fn put(&self, name: Name, authorization: Authorization, seconds: u64) {
        let now = Instant::now();
        let until = now + Duration::from_secs(seconds.clamp(MARGIN.as_secs() + 1, MOST_SECONDS));
        let mut kept = self.kept.lock();
        kept.retain(|_, kept| kept.until > now);
        while kept.len() >= MOST_TOKENS {
            let first = kept.iter().min_by_key(|(_, kept)| kept.until);
            let Some(first) = first.map(|(name, _)| name.clone()) else {
                break;
            };
            kept.remove(&first);
        }
        kept.insert(name, Kept { authorization, until });
    }
}

/// Who fetches tokens for a host, once that is known.
type Found = Arc<tokio::sync::OnceCell<Option<Authority>>>;

/// One question at a time about the same token.
type Turn = Arc<tokio::sync::Mutex<()>>;

/// The tokens of one user.
#[derive(Default)]
pub(crate) struct Tokens {
    own: Shelf,
    shared: Arc<Shelf>,
    authorities: Mutex<HashMap<String, Found>>,
    turns: Mutex<HashMap<(String, Vec<String>), Turn>>,
}

impl Tokens {
    /// Those of another user, who gets what is shared where he proves to be the same.
    pub(crate) fn of_another(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            ..Self::default()
        }
    }

    /// Where it is put down who fetches tokens for a host.
    pub(crate) fn authority(&self, host: &str) -> Found {
        self.authorities
            .lock()
            .entry(host.to_owned())
            .or_default()
            .clone()
    }

    /// Held by the one who is about to ask for a token.
    pub(crate) fn turn(&self, host: &str, scopes: &[String]) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock();
        turns
            .entry((host.to_owned(), scopes.to_vec()))
            .or_default()
            .clone()
    }

    /// What was kept for these scopes of a host.
    pub(crate) fn get(&self, host: &str, scopes: &[String]) -> Option<Authorization> {
        let (shelf, name) = self.place(host, scopes);
        shelf.get(&name)
    }

    /// Keeps it for `seconds`, or as long as tokens last that say nothing.
    pub(crate) fn put(
        &self,
        host: &str,
        scopes: &[String],
        authorization: Authorization,
        seconds: Option<u64>,
    ) {
        let (shelf, name) = self.place(host, scopes);
        shelf.put(name, authorization, seconds.unwrap_or(DEFAULT_SECONDS));
    }

    fn place(&self, host: &str, scopes: &[String]) -> (&Shelf, Name) {
        let authority = self.authorities.lock().get(host).cloned();
        let authority = authority.and_then(|found| found.get().copied().flatten());
        let key = authority
            .filter(|authority| authority.is_proven)
            .map(|found| found.key);
        let name = Name {
            key,
            host: host.to_owned(),
            scopes: scopes.to_vec(),
        };
        match key {
            Some(_) => (&self.shared, name),
            None => (&self.own, name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Password;

    fn token(text: &str) -> Authorization {
        Authorization::Bearer(Password::new(text))
    }

    fn user(of: &Tokens, key: [u8; 32], is_proven: bool) -> Tokens {
        let user = of.of_another();
        let found = user.authority("r.example");
        let set = found.set(Some(Authority { key, is_proven }));
        set.expect("nobody set it yet");
        user
    }

    #[test]
    fn a_token_is_shared_with_those_who_prove_to_be_the_same_and_nobody_else() {
        let all = Tokens::default();
        let scopes = ["repository:a:pull".to_owned()];
        let first = user(&all, [1; 32], true);
        first.put("r.example", &scopes, token("t"), Some(300));
        let sees = |user: &Tokens| user.get("r.example", &scopes).is_some();
        assert!(sees(&first));
        assert!(sees(&user(&all, [1; 32], true)), "the same");
        assert!(!sees(&user(&all, [2; 32], true)), "another");
        assert!(!sees(&user(&all, [1; 32], false)), "one who only says so");
        assert!(!sees(&all.of_another()), "one without an authority");
    }

    #[test]
    fn what_is_not_proven_is_put_on_no_shared_shelf() {
        let all = Tokens::default();
        let liar = user(&all, [1; 32], false);
        liar.put("r.example", &[], token("poisoned"), Some(300));
        assert!(liar.get("r.example", &[]).is_some());
        assert!(user(&all, [1; 32], true).get("r.example", &[]).is_none());
    }

    #[test]
    fn a_shelf_has_an_end() {
        let tokens = Tokens::default();
        for n in 0..(MOST_TOKENS as u64 + 10) {
            tokens.put(&n.to_string(), &[], token("t"), Some(100 + n));
        }
        assert_eq!(tokens.own.kept.lock().len(), MOST_TOKENS);
        assert!(
            tokens.get("0", &[]).is_none(),
            "the one that runs out first is forgotten"
        );
    }
}

//! Owns: what one worker keeps of verified tokens and of lists cut to rights; the wait for a helper
//! thread, and for keys.
//! Never: anything shared with another worker.
//! Next: `jsonrpc`, what those say who were let in.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use quick_cache::unsync::Cache;

use super::jwt::{Claimed, Jwt};
use super::keys::{Key, KeySet, LOOK_INTERVAL};
use super::policy::Rights;
use super::{Caller, Refused};
use crate::limits;
use crate::mcp::catalog::ListKind;
use crate::rt;

/// See the head of this file.
pub struct Desk {
    /// Verified tokens, whole.
    tokens: RefCell<Cache<Box<[u8]>, Verified>>,
    /// Verifications under way on helper threads.
    away: Cell<usize>,
    lists: RefCell<Cache<(u64, ListKind), Cut>>,
}

impl Default for Desk {
    fn default() -> Desk {
        Desk {
            tokens: RefCell::new(Cache::new(limits::TOKENS_KEPT_MAX)),
            away: Cell::new(0),
            lists: RefCell::new(Cache::new(limits::CUT_LISTS_KEPT_MAX)),
        }
    }
}

struct Verified {
    caller: Arc<Caller>,
    /// Seconds since 1970.
    ends: u64,
    /// The keys in force then: with others it is verified again.
    keys: Arc<KeySet>,
}

/// A list as callers with some rights see it.
struct Cut {
    /// What it was made of.
    whole: Rc<[u8]>,
    shown: Rc<[u8]>,
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Desk {
    /// Who shows a token that was verified before, and is still good.
    pub(super) fn known(&self, jwt: &Jwt, token: &[u8]) -> Option<Arc<Caller>> {
        let tokens = self.tokens.borrow();
        let verified = tokens.get(token)?;
        let current = jwt.shelf.keys().is_some_and(|keys| Arc::ptr_eq(&keys, &verified.keys));
        (current && now() < verified.ends).then(|| verified.caller.clone())
    }

    /// Verifies a token.
    pub(super) async fn verify(&self, jwt: &Jwt, token: &[u8]) -> Result<Arc<Caller>, Refused> {
        let claimed = jwt.read(token, now()).map_err(Refused::BadToken)?;
        let (keys, candidates) = self.candidates(jwt, &claimed).await?;
        let mut good = false;
        for key in candidates {
            good = match key.is_slow() {
                false => {
                    let message = &token[claimed.signed.clone()];
                    key.verify(claimed.algorithm, message, &claimed.signature)
                }
                true => self.verify_away(key, token, &claimed).await?,
            };
            if good {
                break;
            }
        }
        if !good {
            return Err(Refused::BadToken("a signature that is not by its key"));
        }
        let caller = Arc::new(jwt.caller(&claimed)?);
        self.keep(token, Verified { caller: caller.clone(), ends: claimed.ends, keys });
        Ok(caller)
    }

    /// The keys that may have signed it; newer ones are waited for if need be.
    async fn candidates(
        &self,
        jwt: &Jwt,
        claimed: &Claimed,
    ) -> Result<(Arc<KeySet>, Vec<Arc<Key>>), Refused> {
        let kid = claimed.kid.as_deref();
        let mut asked = false;
        loop {
            let attempts = jwt.shelf.attempts();
            if let Some(keys) = jwt.shelf.keys() {
                let candidates = keys.candidates(kid, claimed.algorithm);
                if !candidates.is_empty() {
                    return Ok((keys, candidates));
                }
                if kid.is_some_and(|kid| keys.has(kid)) {
                    return Err(Refused::BadToken("an algorithm that its key is not for"));
                }
            }
            if asked || !jwt.shelf.want() {
                return Err(Refused::BadToken("an unknown key"));
            }
            asked = true;
            let fetched = async {
                while jwt.shelf.attempts() == attempts {
                    rt::time::sleep(LOOK_INTERVAL).await;
                }
            };
            let _ = rt::time::timeout(limits::JWKS_WAIT, fetched).await;
        }
    }

    /// Verifies on a helper thread, so that other connections go on meanwhile.
    async fn verify_away(
        &self,
        key: Arc<Key>,
        token: &[u8],
        claimed: &Claimed,
    ) -> Result<bool, Refused> {
        struct Place<'d>(&'d Cell<usize>);
        impl Drop for Place<'_> {
            fn drop(&mut self) {
                self.0.set(self.0.get() - 1);
            }
        }
        // Helper threads look names up too: forged tokens must not take all of their time.
        if self.away.get() >= limits::JWT_VERIFICATIONS_MAX {
            return Err(Refused::Busy);
        }
        self.away.set(self.away.get() + 1);
        let _place = Place(&self.away);
        let message = token[claimed.signed.clone()].to_vec();
        let (algorithm, signature) = (claimed.algorithm, claimed.signature.clone());
        rt::blocking::run(move || key.verify(algorithm, &message, &signature))
            .await
            .map_err(|_| Refused::Busy)
    }

    fn keep(&self, token: &[u8], verified: Verified) {
        self.tokens.borrow_mut().insert(token.into(), verified);
    }

    /// A list as a caller with these rights sees it. Cut once for all who have the same.
    pub fn list(&self, rights: &Rights, what: ListKind, whole: Rc<[u8]>) -> Rc<[u8]> {
        let key = (rights.key(), what);
        let mut lists = self.lists.borrow_mut();
        if let Some(cut) = lists.get(&key)
            && Rc::ptr_eq(&cut.whole, &whole)
        {
            return cut.shown.clone();
        }
        let shown: Rc<[u8]> = rights.list(what, &whole).into();
        lists.insert(key, Cut { whole, shown: shown.clone() });
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::super::policy::Role;
    use super::*;
    use crate::middleware::pattern::{Pattern, Patterns};

    #[test]
    fn lists_are_cut_once_for_equal_rights() {
        let desk = Desk::default();
        let rights = |key: u64, name: &str| {
            let allow = Patterns(vec![Pattern::parse(name).unwrap()]);
            Rights::of_one(Role { allow_tools: Some(allow), ..Role::default() }, key).unwrap()
        };
        let whole: Rc<[u8]> = br#"{"tools":[{"name":"a"},{"name":"b"}]}"#[..].into();
        let a = desk.list(&rights(1, "a"), ListKind::Tools, whole.clone());
        assert_eq!(&*a, br#"{"tools":[{"name":"a"}]}"#);
        assert!(Rc::ptr_eq(&a, &desk.list(&rights(1, "a"), ListKind::Tools, whole.clone())));
        let b = desk.list(&rights(2, "b"), ListKind::Tools, whole);
        assert_eq!(&*b, br#"{"tools":[{"name":"b"}]}"#);
        let other: Rc<[u8]> = br#"{"tools":[]}"#[..].into();
        assert_eq!(&*desk.list(&rights(1, "a"), ListKind::Tools, other), br#"{"tools":[]}"#);
        for key in 0..2 * limits::CUT_LISTS_KEPT_MAX as u64 {
            desk.list(&rights(key, "a"), ListKind::Tools, b.clone());
        }
        assert!(desk.lists.borrow().len() <= limits::CUT_LISTS_KEPT_MAX);
    }
}

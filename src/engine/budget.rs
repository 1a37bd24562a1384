//! Guest memory of the whole process, and how much of it one owner has.
//!
//! Invariant: all guests together never have more than the limit, one owner's never more than its share; an owner that
//! has some gets more only while as much as it then has stays free, so that nobody's growth leaves nothing to others.
//! What was taken is given back when its [`Reserved`] goes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

use crate::domain::OwnerId;

use super::sys;

/// One owner gets at most the budget divided by this.
const SHARES: u64 = 2;
/// Without a configured budget: the memory of the machine, or of its control group, divided by this.
const OF_MACHINE: u64 = 2;
const LEAST: u64 = 64 << 20;
/// When the system does not say how much memory there is.
const UNKNOWN: u64 = 1 << 30;

pub struct Budget {
    limit: u64,
    used: AtomicU64,
    accounts: Mutex<HashMap<OwnerId, Weak<Account>>>,
    /// Somebody waits for memory to be given back.
    awaited: AtomicBool,
    on_freed: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// What the guests of one owner have. Lives as long as one of them, or a handler of that owner.
pub struct Account {
    owner: OwnerId,
    budget: Arc<Budget>,
    used: AtomicU64,
}

/// Bytes taken for an owner.
pub struct Reserved {
    account: Arc<Account>,
    bytes: u64,
}

impl Budget {
    /// `None`: as much as this machine can spare.
    pub fn new(limit: Option<u64>) -> Arc<Budget> {
        let limit = limit.unwrap_or_else(|| sys::memory().map_or(UNKNOWN, |all| (all / OF_MACHINE).max(LEAST)));
        Arc::new(Budget {
            limit,
            used: AtomicU64::new(0),
            accounts: Mutex::default(),
            awaited: AtomicBool::new(false),
            on_freed: OnceLock::new(),
        })
    }

    /// Has `hook` called when memory is given back after a [`Budget::await_memory`]. The first one stays.
    pub fn on_freed(&self, hook: Box<dyn Fn() + Send + Sync>) {
        let _ = self.on_freed.set(hook);
    }

    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The most that one owner's guests have together.
    pub fn share(&self) -> u64 {
        self.limit / SHARES
    }

    pub fn account(self: &Arc<Self>, owner: &OwnerId) -> Arc<Account> {
        let mut accounts = self.accounts.lock();
        if let Some(account) = accounts.get(owner).and_then(Weak::upgrade) {
            return account;
        }
        let account = Arc::new(Account { owner: owner.clone(), budget: self.clone(), used: AtomicU64::new(0) });
        accounts.insert(owner.clone(), Arc::downgrade(&account));
        account
    }

    /// From now on, giving back calls the hook, once. Whoever calls this has to try again after it.
    pub fn await_memory(&self) {
        self.awaited.store(true, Ordering::SeqCst);
    }
}

impl Account {
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Reserved> {
        let mut reserved = Reserved { account: self.clone(), bytes: 0 };
        reserved.raise(bytes).then_some(reserved)
    }

    fn take(&self, bytes: u64) -> bool {
        let budget = &self.budget;
        let Some(before) = add(&self.used, bytes, budget.share()) else { return false };
        let left_free = if before == 0 { 0 } else { before + bytes };
        if add(&budget.used, bytes, budget.limit - left_free).is_some() {
            return true;
        }
        // Nobody is told: this runs where a run is chosen too, and the end of any run has all that wait looked at.
        self.used.fetch_sub(bytes, Ordering::SeqCst);
        false
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::SeqCst);
        let budget = &self.budget;
        budget.used.fetch_sub(bytes, Ordering::SeqCst);
        if budget.awaited.load(Ordering::SeqCst)
            && budget.awaited.swap(false, Ordering::SeqCst)
            && let Some(hook) = budget.on_freed.get()
        {
            hook();
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let mut accounts = self.budget.accounts.lock();
        // A new one may have taken its place.
        if accounts.get(&self.owner).is_some_and(|account| account.strong_count() == 0) {
            accounts.remove(&self.owner);
        }
    }
}

impl Reserved {
    /// For more of the same owner's, apart from this.
    pub fn none_yet(&self) -> Reserved {
        Reserved { account: self.account.clone(), bytes: 0 }
    }

    /// To this many bytes in all. False, with nothing taken, when the budget or the owner's share does not allow it.
    pub fn raise(&mut self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let taken = more == 0 || self.account.take(more);
        if taken {
            self.bytes += more;
        }
        taken
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.account.give_back(self.bytes);
        }
    }
}

impl std::fmt::Debug for Reserved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes for `{}`", self.bytes, self.account.owner)
    }
}

/// Gives the sum before.
fn add(sum: &AtomicU64, bytes: u64, limit: u64) -> Option<u64> {
    let within = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= limit);
    sum.fetch_update(Ordering::SeqCst, Ordering::Relaxed, within).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(name: &str) -> OwnerId {
        name.parse().unwrap()
    }

    #[test]
    fn neither_the_budget_nor_a_share_overflows() {
        let budget = Budget::new(Some(100));
        let (a, b, c) = (budget.account(&owner("a")), budget.account(&owner("b")), budget.account(&owner("c")));
        assert!(a.reserve(51).is_none() && a.reserve(u64::MAX).is_none());
        let mut held = a.reserve(30).unwrap();
        assert!(!held.raise(51) && held.raise(50) && held.raise(20));
        assert!(a.reserve(1).is_none());
        let other = b.reserve(50).unwrap();
        assert!(c.reserve(1).is_none());
        drop(other);
        assert!(c.reserve(50).is_some());
        drop(held);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn what_an_owner_adds_leaves_as_much_free() {
        let budget = Budget::new(Some(1_000));
        let grown = |name: &str| {
            let mut held = budget.account(&owner(name)).reserve(10).unwrap();
            let most = (10..=1_000).step_by(10).take_while(|bytes| held.raise(*bytes)).last();
            (most.unwrap(), held)
        };
        let ((a, _a), (b, _b), (c, _c)) = (grown("a"), grown("b"), grown("c"));
        assert_eq!((a, b, c), (500, 250, 120));
        assert!(budget.account(&owner("d")).reserve(130).is_some(), "what is begun with may be all that is free");
    }

    #[test]
    fn accounts_live_as_long_as_somebody_uses_them() {
        let budget = Budget::new(Some(100));
        let held = budget.account(&owner("a")).reserve(50).unwrap();
        assert!(budget.account(&owner("a")).reserve(1).is_none(), "it is the same account");
        drop(held);
        assert!(budget.accounts.lock().is_empty());
    }

    #[test]
    fn who_awaits_memory_hears_of_it_once() {
        let budget = Budget::new(Some(100));
        let heard = Arc::new(AtomicU64::new(0));
        let count = heard.clone();
        budget.on_freed(Box::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        }));
        let account = budget.account(&owner("a"));
        let (one, two) = (account.reserve(10), account.reserve(10));
        budget.await_memory();
        drop((one, two));
        assert_eq!(heard.load(Ordering::Relaxed), 1);
    }
}

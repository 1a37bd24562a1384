//! Run permits: how many guests compute at once, and whose turn it is.
//!
//! A thread that takes a run [`enter`](Permits::enter)s; at the end of a slice of fuel the guest [`pass_on`]s. Guests
//! that begin and guests that go on form two lines, each in order of arrival, and permits go to the two lines in turn:
//! a short run gets past any number of endless ones, and they still get half.
//!
//! Invariant: no more threads than there are permits compute on behalf of guests, but for the moments in which a guest
//! that met its deadline is taken down; a thread that sleeps for its guest holds none.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// How long a permit is kept when others wait. A short run needs one turn.
pub const TURN: Duration = Duration::from_micros(500);

pub struct Permits {
    lines: Mutex<Lines>,
    /// Threads in both lines.
    waiting: AtomicUsize,
}

struct Lines {
    free: usize,
    beginning: VecDeque<Arc<Waiter>>,
    going_on: VecDeque<Arc<Waiter>>,
    /// The next permit is for who begins.
    beginners_turn: bool,
}

#[derive(Default)]
struct Waiter {
    granted: AtomicBool,
    called: Condvar,
}

thread_local! {
    static OWN: RefCell<Option<Own>> = const { RefCell::new(None) };
}

/// The part of the thread that entered.
struct Own {
    permits: Arc<Permits>,
    /// Since when it has a permit; `None` after a wait that met its deadline.
    holds: Option<Instant>,
}

/// Gives the thread's permit back when it goes.
pub struct Entered(());

impl Permits {
    pub fn new(count: usize) -> Arc<Permits> {
        let lines = Lines { free: count, beginning: VecDeque::new(), going_on: VecDeque::new(), beginners_turn: true };
        Arc::new(Permits { lines: Mutex::new(lines), waiting: AtomicUsize::new(0) })
    }

    /// Waits for a permit, which belongs to the calling thread from then on.
    pub fn enter(self: &Arc<Self>) -> Entered {
        self.acquire(|lines| &mut lines.beginning, None);
        OWN.with(|own| *own.borrow_mut() = Some(Own { permits: self.clone(), holds: Some(Instant::now()) }));
        Entered(())
    }

    fn acquire(&self, line: fn(&mut Lines) -> &mut VecDeque<Arc<Waiter>>, deadline: Option<Instant>) -> bool {
        let mut lines = self.lines.lock();
        if lines.free > 0 {
            lines.free -= 1;
            return true;
        }
        let own = Arc::new(Waiter::default());
        line(&mut lines).push_back(own.clone());
        self.waiting.fetch_add(1, Ordering::Relaxed);
        while !own.granted.load(Ordering::Relaxed) {
            let late = match deadline {
                Some(deadline) => own.called.wait_until(&mut lines, deadline).timed_out(),
                None => {
                    own.called.wait(&mut lines);
                    false
                }
            };
            if late && !own.granted.load(Ordering::Relaxed) {
                line(&mut lines).retain(|waiter| !Arc::ptr_eq(waiter, &own));
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                return false;
            }
        }
        true
    }

    fn release(&self) {
        let mut lines = self.lines.lock();
        let Some(next) = lines.next() else {
            lines.free += 1;
            return;
        };
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        next.granted.store(true, Ordering::Relaxed);
        next.called.notify_one();
    }
}

impl Lines {
    fn next(&mut self) -> Option<Arc<Waiter>> {
        let beginner = if self.beginners_turn || self.going_on.is_empty() { self.beginning.pop_front() } else { None };
        self.beginners_turn = beginner.is_none();
        beginner.or_else(|| self.going_on.pop_front())
    }
}

/// Lets others run when some wait and the thread has had its turn; comes back with a permit, or without one at the
/// deadline. Does nothing on threads that did not enter, such as the proxy's.
pub fn pass_on(now: Instant, deadline: Instant) {
    let is_over = |own: &Own| {
        let turn = own.holds.map(|since| now.saturating_duration_since(since));
        turn.is_none_or(|turn| turn >= TURN && own.permits.waiting.load(Ordering::Relaxed) > 0)
    };
    if OWN.with(|own| own.borrow().as_ref().is_some_and(is_over)) {
        aside(deadline, || ());
    }
}

/// Waits for something without a permit, then for one, as [`pass_on`] does.
pub fn aside(deadline: Instant, wait: impl FnOnce()) {
    let released = OWN.with(|own| {
        let mut own = own.borrow_mut();
        own.as_mut().map(|own| (own.permits.clone(), own.holds.take()))
    });
    let Some((permits, held)) = released else { return wait() };
    if held.is_some() {
        permits.release();
    }
    wait();
    let holds = permits.acquire(|lines| &mut lines.going_on, Some(deadline));
    OWN.with(|own| {
        if let Some(own) = own.borrow_mut().as_mut() {
            own.holds = holds.then(Instant::now);
        }
    });
}

impl Drop for Entered {
    fn drop(&mut self) {
        let own = OWN.with(|own| own.borrow_mut().take());
        if let Some(Own { permits, holds: Some(_) }) = own {
            permits.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// Starts a thread that enters, tells its name, and ends; returns when it stands in line.
    fn line_up(permits: &Arc<Permits>, name: &'static str, tell: &mpsc::Sender<&'static str>, goes_on: bool) {
        let before = permits.waiting.load(Ordering::Relaxed);
        let (theirs, tell) = (permits.clone(), tell.clone());
        std::thread::spawn(move || {
            let line: fn(&mut Lines) -> &mut VecDeque<Arc<Waiter>> =
                if goes_on { |lines| &mut lines.going_on } else { |lines| &mut lines.beginning };
            theirs.acquire(line, None);
            tell.send(name).unwrap();
            theirs.release();
        });
        while permits.waiting.load(Ordering::Relaxed) == before {
            std::thread::yield_now();
        }
    }

    #[test]
    fn who_begins_and_who_goes_on_take_turns() {
        let permits = Permits::new(1);
        let entered = permits.enter();
        let (tell, told) = mpsc::channel();
        for name in ["old 1", "old 2", "old 3"] {
            line_up(&permits, name, &tell, true);
        }
        for name in ["new 1", "new 2"] {
            line_up(&permits, name, &tell, false);
        }
        drop(entered);
        let order: Vec<_> = told.iter().take(5).collect();
        assert_eq!(order, ["new 1", "old 1", "new 2", "old 2", "old 3"]);
    }

    #[test]
    fn a_wait_ends_at_the_deadline_without_a_permit() {
        let permits = Permits::new(1);
        let first = permits.enter();
        let begun = Instant::now();
        let (tell, told) = mpsc::channel();
        let (go, wait) = mpsc::channel::<()>();
        let theirs = permits.clone();
        let second = std::thread::spawn(move || {
            let _entered = theirs.enter();
            tell.send(()).unwrap();
            wait.recv().unwrap();
        });
        while permits.waiting.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        let deadline = Instant::now() + Duration::from_millis(5);
        pass_on(begun, deadline);
        assert!(told.try_recv().is_err(), "its turn has only begun");
        pass_on(begun + TURN, deadline);
        told.recv().unwrap();
        assert_eq!(permits.lines.lock().free, 0);
        drop(first);
        assert_eq!(permits.lines.lock().free, 0, "what it does not hold it does not give back");
        go.send(()).unwrap();
        second.join().unwrap();
        assert_eq!(permits.lines.lock().free, 1);
    }
}

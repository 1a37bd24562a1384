//! The guest pool and the inline lane, without a server in front.

use super::*;

#[tokio::test]
async fn one_owner_cannot_take_every_thread() {
    // Half of the threads is the most, whatever `per_owner` says.
    let kit = Kit::with(wasmgate::config::Engine { threads: 2, per_owner: 2, ..config() });
    let (spin, quick) = (kit.load(SPIN).await, kit.load(SIEVE).await);
    let slow = Limits { wall_ms: Duration::from_millis(400), ..limits() };
    let spins =
        futures_util::future::join_all((0..4).map(|_| kit.run_as("evil", &spin, slow.clone(), Input::default())));
    let others = async {
        let begun = Instant::now();
        for _ in 0..20 {
            assert!(kit.run_as("acme", &quick, limits(), number(10)).await.result.is_ok());
        }
        begun.elapsed()
    };
    let (spins, took) = tokio::join!(spins, others);
    assert!(spins.iter().all(|f| *failure(f) == GuestFailure::Deadline));
    assert!(took < Duration::from_millis(400), "{took:?}");
}

#[tokio::test]
async fn owners_that_fill_their_shares_leave_places_by_default() {
    let kit = Kit::with(wasmgate::config::Engine { threads: 0, per_owner: 4, ..config() });
    let (spin, quick) = (kit.load(SPIN).await, kit.load(SIEVE).await);
    let wall = Duration::from_secs(3);
    let slow = Limits { wall_ms: wall, ..limits() };
    let begun = Instant::now();
    let loops = futures_util::future::join_all((0..8).map(|n| {
        let (kit, spin, slow) = (&kit, &spin, slow.clone());
        async move { kit.run_as(["evil", "worse"][n % 2], spin, slow, Input::default()).await }
    }));
    let other = async {
        eventually_async("the loops are under way", || kit.engine.stats().guests_running == 8).await;
        assert!(kit.run_as("acme", &quick, limits(), number(10)).await.result.is_ok());
        begun.elapsed()
    };
    let (loops, took) = tokio::join!(loops, other);
    assert!(loops.iter().all(|f| *failure(f) == GuestFailure::Deadline));
    assert!(took < wall / 2, "{took:?}");
}

#[tokio::test]
async fn a_full_pool_refuses_at_once_and_a_long_queue_in_time() {
    let queue_timeout = Duration::from_millis(100);
    let kit = Kit::with(wasmgate::config::Engine { threads: 1, queue: 2, queue_timeout, ..config() });
    let spin = kit.load(SPIN).await;
    let slow = Limits { wall_ms: Duration::from_millis(600), ..limits() };
    let begun = Instant::now();
    let runs = futures_util::future::join_all((0..6).map(|n| {
        let owner = ["a", "b", "c"][n % 3];
        let (kit, spin, slow) = (&kit, &spin, slow.clone());
        async move { (kit.run_as(owner, spin, slow, Input::default()).await, begun.elapsed()) }
    }))
    .await;
    let (ran, busy): (Vec<_>, Vec<_>) = runs.iter().partition(|(f, _)| matches!(f.result, Err(RunError::Guest(_))));
    assert_eq!((ran.len(), busy.len()), (1, 5));
    for (finished, at) in busy {
        assert!(
            matches!(&finished.result, Err(RunError::Busy { retry_after }) if *retry_after >= Duration::from_secs(1))
        );
        assert!(*at < Duration::from_millis(500), "{at:?}");
    }
    // A thread notes the end of a run just after it handed over the result.
    eventually_async("no thread counts as running", || kit.engine.stats().guests_running == 0).await;
    assert_eq!(kit.engine.stats().guests_queued, 0);
}

#[tokio::test]
async fn a_short_module_that_turns_long_still_gets_its_time() {
    let kit = Kit::new();
    let module = kit.load(SIEVE).await;
    // Becomes inline, then needs some 10 ms.
    for _ in 0..300 {
        kit.run(&module, limits(), number(10)).await.result.unwrap();
    }
    let finished = kit.run(&module, limits(), number(65_000)).await;
    assert_eq!(finished.result.unwrap().values, [serde_json::json!(6_493)]);
    // An endless run of an inline module meets its own deadline, not the slice's.
    let spin = kit.load(r#"(module (func (export "run") (param i32) (loop (br_if 0 (local.get 0)))))"#).await;
    for _ in 0..300 {
        kit.run(&spin, limits(), number(0)).await.result.unwrap();
    }
    let finished = kit.run(&spin, Limits { wall_ms: Duration::from_millis(80), ..limits() }, number(1)).await;
    assert_eq!(*failure(&finished), GuestFailure::Deadline);
    assert!(finished.meter.wall >= Duration::from_millis(80));
}

#[tokio::test]
async fn shutdown_refuses_what_waits() {
    let kit = Kit::new();
    let module = kit.load(SIEVE).await;
    kit.engine.shutdown();
    let finished = kit.run(&module, limits(), number(10)).await;
    assert!(matches!(finished.result, Err(RunError::Busy { .. })));
}

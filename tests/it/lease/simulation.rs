//! Nodes and one shared bucket in virtual time: the node's side of the limiter against what the design promises.

mod fleet;

use self::fleet::{Outcome, Pattern, Scenario};

/// What holds whatever happens, outages aside: a rolling limit is overshot by its slack at most, a calendar limit never, and
/// there are no more calls than requests.
fn check(scenario: &Scenario) -> Outcome {
    let outcome = scenario.run();
    let Outcome { overshoot, slack, calendar_overshoot, .. } = outcome;
    assert!(overshoot <= slack + 1e-3, "{overshoot} tokens over a slack of {slack}: {scenario:?}");
    assert_eq!(calendar_overshoot, 0, "{scenario:?}");
    assert!(outcome.commands <= outcome.requests + outcome.failed, "{outcome:?} of {scenario:?}");
    outcome
}

fn base() -> Scenario {
    Scenario {
        policies: &[(100, "1s", None)],
        overshoot_percent: 5,
        nodes: 16,
        round_trip_ms: (0.3, 2.0),
        offered: 100.0,
        pattern: Pattern::Even,
        seconds: 20.0,
        loss: 0.0,
        crashes_a_second: 0.0,
        outage: None,
        start: 1_709_208_000_000_000,
        seed: 1,
    }
}

/// Commands per 1,000 requests, admitted against the oracle, worst overshoot in hundredths of the limit.
struct Figures(f64, f64, f64);

#[test]
fn the_figures_are_reached() {
    let rows: [(&str, Scenario, Figures); 7] = [
        ("100/s at 10x", Scenario { offered: 1_000.0, seconds: 40.0, ..base() }, Figures(61.0, 1.0, 3.6)),
        (
            "1,000/s at 0.95x",
            Scenario { policies: &[(1_000, "1s", None)], offered: 950.0, seconds: 40.0, ..base() },
            Figures(37.0, 1.0, 4.4),
        ),
        (
            "1,000/s at 1.2x, moving",
            Scenario {
                policies: &[(1_000, "1s", None)],
                offered: 1_200.0,
                pattern: Pattern::Moving,
                seconds: 40.0,
                ..base()
            },
            Figures(15.0, 0.996, 5.0),
        ),
        (
            "10,000/s at 1.2x, Zipf",
            Scenario {
                policies: &[(10_000, "1s", None)],
                offered: 12_000.0,
                pattern: Pattern::Zipf,
                seconds: 15.0,
                ..base()
            },
            Figures(13.0, 0.996, 5.0),
        ),
        (
            "1,000/s at 1.2x, 4 nodes",
            Scenario { policies: &[(1_000, "1s", None)], nodes: 4, offered: 1_200.0, seconds: 40.0, ..base() },
            Figures(20.0, 0.996, 5.0),
        ),
        (
            "500/min at 4x",
            Scenario { policies: &[(500, "1m", Some(100))], offered: 33.0, seconds: 300.0, ..base() },
            Figures(1000.0, 0.99, 0.0),
        ),
        (
            "10,000 a day at 200/s",
            Scenario { policies: &[(10_000, "1d", None)], offered: 200.0, seconds: 80.0, ..base() },
            Figures(1000.0, 0.999, 0.0),
        ),
    ];
    for (name, scenario, Figures(commands, admitted, overshoot)) in rows {
        let mut got = (0.0, 0.0, 0.0f64, 0.0, 0.0f64);
        let seeds = 2;
        for seed in 1..=seeds {
            let o = check(&Scenario { seed, ..scenario.clone() });
            got.0 += o.commands_a_thousand() / f64::from(seeds as u32);
            got.1 += o.admitted_share() / f64::from(seeds as u32);
            got.2 = got.2.max(o.overshoot_percent());
            got.3 += o.waited_share() / f64::from(seeds as u32);
            got.4 = got.4.max(o.wait_p99_ms);
        }
        println!(
            "{name}: {:.0} / {:.4} / {:.1} % (aim {commands} / {admitted} / {overshoot} %), waited {:.1} %, p99 {:.1} ms",
            got.0,
            got.1,
            got.2,
            got.3 * 100.0,
            got.4
        );
    }
}

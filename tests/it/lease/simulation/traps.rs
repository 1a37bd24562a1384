//! Mistakes that the design warns of: each of these fails when its mistake is made.

use super::fleet::{Pattern, Scenario};
use super::{HUNDRED, Policies, THOUSAND, base, check};

/// Not counting what is out, or giving a bucket back what it has refilled meanwhile.
#[test]
fn stock_that_is_out_leaves_less_to_refill() {
    for overshoot_percent in [0, 5] {
        for seed in 1..=3 {
            // 1x for two seconds, in which all nodes fill their stock, then 28x.
            let scenario = Scenario { policies: THOUSAND, overshoot_percent, offered: 10_000.0, seed, ..base() };
            check(&Scenario { pattern: Pattern::OnOff, ..scenario.clone() });
            // All nodes have stock and idle when one draws what it can.
            let gather = Pattern::Gather(10);
            check(&Scenario { pattern: gather, offered: 900.0, seconds: 12.0, ..scenario.clone() });
            check(&Scenario { pattern: Pattern::Moving, ..scenario });
        }
    }
}

/// Shares that begin full, debts that are forgotten when their call fails, or kept for the key's next request.
#[test]
fn an_outage_admits_shares_and_is_settled_at_once() {
    let outages: [&'static [(f64, f64)]; 4] =
        [&[(10.0, 12.0)], &[(10.0, 14.0)], &[(10.0, 40.0)], &[(10.0, 13.0), (14.0, 17.0), (17.5, 20.0)]];
    for outages in outages {
        let end = outages[outages.len() - 1].1;
        let length: f64 = outages.iter().map(|(from, to)| to - from).sum();
        for pattern in [Pattern::Even, Pattern::OnOff, Pattern::Gather(end as u64)] {
            for (load, loss) in [(0.5, 0.0), (5.0, 0.0), (5.0, 0.3)] {
                let (offered, seconds) = (1_000.0 * load, end + 8.0);
                let scenario = Scenario { policies: THOUSAND, offered, seconds, outages, pattern, loss, ..base() };
                let o = scenario.run();
                assert!(o.overshoot <= o.slack, "{:.1} %: {o:?} of {scenario:?}", o.overshoot_percent());
                let fair = offered.min(1_000.0) * length;
                let uneven = pattern == Pattern::OnOff;
                assert!(uneven || o.alone as f64 >= 0.9 * fair, "{} alone of {fair}: {scenario:?}", o.alone);
                assert!(o.commands <= o.requests + o.failed, "{o:?} of {scenario:?}");
            }
        }
    }
}

/// A day's quota in an outage: what is left, as each node knows it, by the number of nodes.
#[test]
fn an_outage_spends_what_was_left_of_a_day() {
    for (load, most) in [(0.5, 0.0), (1.0, 0.0), (5.0, 0.05)] {
        let policies: Policies = &[(60_000, "1d", None)];
        let scenario = Scenario {
            policies,
            offered: 1_000.0 * load,
            seconds: 80.0,
            outages: &[(15.0, 45.0)],
            pattern: Pattern::Even,
            ..base()
        };
        let o = scenario.run();
        let over = o.calendar_overshoot as f64 / 60_000.0;
        assert!(over <= most, "{over:.3} over at {load}x: {o:?}");
        assert!(o.admitted_share() >= 0.999, "{o:?} of {scenario:?}");
    }
}

/// Leases of a few tokens, and nodes that wait for the day's end while others still hold stock.
#[test]
fn small_day_quotas_are_not_stranded() {
    let quotas: [Policies; 3] = [&[(100, "1d", None)], &[(500, "1d", None)], &[(2_000, "1d", None)]];
    for policies in quotas {
        for pattern in [Pattern::Even, Pattern::Moving, Pattern::OnOff, Pattern::Zipf, Pattern::Gather(4)] {
            let offered = policies[0].0 as f64 / 10.0;
            let scenario = Scenario { policies, pattern, offered, seconds: 60.0, ..base() };
            let o = check(&scenario);
            assert_eq!(o.admitted, o.exact, "{o:?} of {scenario:?}");
        }
    }
}

/// Stock that is never given back.
#[test]
fn traffic_that_moves_takes_its_stock_along() {
    for policies in [THOUSAND, HUNDRED] {
        let offered = policies[0].0 as f64 * 1.2;
        let scenario = Scenario { policies, offered, pattern: Pattern::Moving, seconds: 60.0, ..base() };
        let o = check(&scenario);
        assert!(o.admitted_share() >= 0.985, "{:.3}: {o:?} of {scenario:?}", o.admitted_share());
    }
}

/// What a call gives back or acknowledges given twice: by a call that is sent again, or by the next one.
#[test]
fn lost_replies_and_crashes_cost_callers_and_not_the_limit() {
    let limits: [Policies; 4] =
        [THOUSAND, HUNDRED, &[(3_000, "1d", None)], &[(500, "1m", Some(100)), (900, "1d", None)]];
    for policies in limits {
        for pattern in [Pattern::Even, Pattern::OnOff, Pattern::Moving] {
            for (loss, crashes_a_second, least) in [(0.02, 0.0, 0.8), (0.3, 0.0, 0.5), (0.0, 2.0, 0.8), (0.1, 1.0, 0.7)]
            {
                for load in [1.0, 10.0] {
                    let rate = if policies[0].1 == "1d" { 100.0 } else { policies[0].0 as f64 };
                    let rate = if policies[0].1 == "1m" { rate / 60.0 } else { rate };
                    let (offered, seconds) = (rate * load, 24.0);
                    let scenario = Scenario { policies, loss, crashes_a_second, pattern, offered, seconds, ..base() };
                    let o = check(&scenario);
                    assert!(o.admitted_share() >= least, "{:.3}: {o:?} of {scenario:?}", o.admitted_share());
                }
            }
        }
    }
}

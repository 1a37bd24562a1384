//! Mistakes that the design warns of: each of these fails when its mistake is made.

use super::fleet::{Pattern, Scenario};
use super::{HUNDRED, Policies, THOUSAND, base, check};

/// Not counting what is out.
#[test]
fn stock_that_is_out_leaves_less_to_refill() {
    let limits: [Policies; 3] = [HUNDRED, &[(1_000, "1s", Some(50))], &[(600, "1m", None)]];
    for policies in limits {
        let rate = if policies[0].1 == "1m" { 10.0 } else { policies[0].0 as f64 };
        for (overshoot_percent, nodes) in [(0, 4), (0, 16), (5, 4), (5, 16)] {
            for (pattern, load) in [(Pattern::OnOff, 10.0), (Pattern::OnOff, 1.2), (Pattern::Gather(6), 10.0)] {
                for round_trip_ms in [(0.3, 2.0), (20.0, 20.0)] {
                    let offered = rate * load;
                    let seconds = (12_000.0 / offered).clamp(9.0, 60.0);
                    let scenario = Scenario { policies, overshoot_percent, nodes, offered, round_trip_ms, ..base() };
                    check(&Scenario { pattern, seconds, ..scenario });
                }
            }
        }
    }
}

/// Shares that begin full, debts that are forgotten when their call fails, or kept for the key's next request.
#[test]
fn an_outage_admits_shares_and_is_settled_at_once() {
    let outages: [&'static [(f64, f64)]; 4] =
        [&[(6.0, 8.0)], &[(6.0, 10.0)], &[(6.0, 36.0)], &[(6.0, 9.0), (10.0, 13.0), (13.5, 16.0)]];
    for outages in outages {
        let end = outages[outages.len() - 1].1;
        let length: f64 = outages.iter().map(|(from, to)| to - from).sum();
        for pattern in [Pattern::Even, Pattern::OnOff, Pattern::Gather(end as u64)] {
            for (load, loss, probes_answered) in
                [(0.5, 0.0, false), (3.0, 0.0, false), (3.0, 0.3, false), (3.0, 0.0, true)]
            {
                let (offered, seconds) = (1_000.0 * load, end + 6.0);
                let scenario = Scenario {
                    policies: THOUSAND,
                    offered,
                    seconds,
                    outages,
                    pattern,
                    loss,
                    probes_answered,
                    ..base()
                };
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

/// The price of sharing: who is cut off alone has its share beside what the others draw, and no debt below an empty bucket.
#[test]
fn a_node_that_is_cut_off_adds_no_more_than_its_share() {
    for (nodes, cut_off) in [(4, 1), (4, 2), (16, 1)] {
        let outages = &[(6.0, 16.0)];
        let scenario =
            Scenario { policies: THOUSAND, nodes, cut_off, outages, offered: 3_000.0, seconds: 20.0, ..base() };
        let o = scenario.run();
        let share = 10.4 * 1_000.0 * f64::from(cut_off) / f64::from(nodes);
        println!("{cut_off} of {nodes}: {:.0} over, share {share:.0}", o.overshoot);
        assert!(o.overshoot <= o.slack + share, "{:.0} over, the share is {share}: {o:?}", o.overshoot);
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

/// A node that finds a day used up and waits for its end, when others have yet to give back what they hold.
#[test]
fn a_day_is_over_when_no_node_holds_stock() {
    for nodes in [2, 4, 16] {
        let policies: Policies = &[(2_000, "1d", None)];
        let scenario =
            Scenario { policies, nodes, pattern: Pattern::Gather(1), offered: 1_700.0, seconds: 15.0, ..base() };
        let o = check(&scenario);
        assert_eq!((o.admitted, o.exact), (2_000, 2_000), "{o:?} of {scenario:?}");
        assert!(o.commands_a_thousand() < 30.0, "{o:?} of {scenario:?}");
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

/// With `node::what_a_lost_call_gave_is_not_given_again`: lost grants would hide here what is given twice.
#[test]
fn lost_replies_and_crashes_cost_callers_and_not_the_limit() {
    let limits: [Policies; 4] =
        [THOUSAND, HUNDRED, &[(3_000, "1d", None)], &[(500, "1m", Some(100)), (900, "1d", None)]];
    for policies in limits {
        for pattern in [Pattern::Even, Pattern::OnOff, Pattern::Moving] {
            for (loss, crashes_a_second, least) in [(0.02, 0.0, 0.8), (0.3, 0.0, 0.4), (0.0, 2.0, 0.8), (0.1, 1.0, 0.7)]
            {
                for load in [1.0, 10.0] {
                    let rate = if policies[0].1 == "1d" { 100.0 } else { policies[0].0 as f64 };
                    let rate = if policies[0].1 == "1m" { rate / 60.0 } else { rate };
                    let offered = rate * load;
                    let seconds = (30_000.0 / offered).clamp(6.0, 24.0);
                    let scenario = Scenario { policies, loss, crashes_a_second, pattern, offered, seconds, ..base() };
                    let o = check(&scenario);
                    assert!(o.admitted_share() >= least, "{:.3}: {o:?} of {scenario:?}", o.admitted_share());
                }
            }
        }
    }
}

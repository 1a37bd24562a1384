//! What goes to the shared bucket and what comes back: the argument list and the reply of `store/redis/lease.lua`.

use smallvec::SmallVec;

use super::terms::Plan;

/// A policy's part of something; a tier rarely has more.
pub type PerPolicy<T> = SmallVec<[T; 2]>;

/// One call for one caller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// Tokens that requests wait for.
    pub need: u64,
    /// Tokens wanted as stock, beyond those held.
    pub want: u64,
    /// Tokens in stock.
    pub held: u64,
    /// Tokens given back; never sent again when the call fails.
    pub returned: u64,
    /// Tokens that the last reply left outstanding, of which `held` are what is left.
    pub acknowledged: u64,
    /// By policy, in the plan's order.
    pub policies: PerPolicy<Claim>,
}

/// A policy's part of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// What the last reply said; 0: there was none.
    pub tag: u64,
    /// Tokens spent without a grant, while the shared state was out of reach.
    pub debt: u64,
}

/// The answer. Times are microseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The server's clock.
    pub now: u64,
    pub grant: u64,
    /// By policy, in the plan's order.
    pub policies: PerPolicy<Granted>,
}

/// A policy's part of a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    /// Tokens left in the shared bucket.
    pub left: u64,
    /// How long the tokens may be spent, from the time at which the call was sent.
    pub ttl: u64,
    /// Names the epoch (its end, microseconds) or the window (its start, seconds).
    pub tag: u64,
    /// Calendar windows only: Unix seconds.
    pub window_end: u64,
    pub exhausted: bool,
    /// Until there is a token again.
    pub retry: u64,
}

impl Call {
    /// The script's `ARGV`.
    pub fn arguments(&self, plan: &Plan, nodes: u32) -> Vec<String> {
        let mut out = Vec::with_capacity(5 + 9 * plan.policies.len());
        out.extend([self.need, self.want, self.held, self.returned, self.acknowledged].map(text));
        for ((name, terms), claim) in plan.policies.iter().zip(&self.policies) {
            let (kind, numbers) = terms.arguments(nodes);
            out.extend([name.to_string(), kind.to_owned()]);
            out.extend(numbers.map(text));
            out.extend([claim.tag, claim.debt].map(text));
        }
        out
    }
}

impl Reply {
    /// From the script's integers; `None`: they are not what the script answers for that plan.
    pub fn parse(numbers: &[i64], plan: &Plan) -> Option<Self> {
        let (head, rest) = numbers.split_at_checked(2)?;
        let whole = |n: i64| u64::try_from(n).ok();
        let mut policies = PerPolicy::new();
        for part in rest.chunks(6) {
            let [left, ttl, tag, window_end, exhausted, retry] = <[i64; 6]>::try_from(part).ok()?.map(whole);
            policies.push(Granted {
                left: left?,
                ttl: ttl?,
                tag: tag?,
                window_end: window_end?,
                exhausted: exhausted? == 1,
                retry: retry?,
            });
        }
        let complete = policies.len() == plan.policies.len();
        Some(Self { now: whole(head[0])?, grant: whole(head[1])?, policies }).filter(|_| complete)
    }
}

/// The script reads doubles, in which larger numbers have gaps.
fn text(n: u64) -> String {
    n.min(1 << 52).to_string()
}

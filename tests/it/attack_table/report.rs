//! Runs the rows one after the other and prints what came of each.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::arena::Arena;
use super::row::{Attack, Code, Row};

pub struct Report {
    contained: u32,
    broken: Vec<String>,
}

impl Report {
    pub fn new() -> Report {
        println!(
            "{:<32} {:<46} {:<14} {:<33} {:>9} {:>12} {:>9} {:>6}  verdict",
            "threat", "variant", "code", "answer", "after", "others", "slowest", "RSS MB"
        );
        Report { contained: 0, broken: Vec::new() }
    }

    pub fn turn(&mut self, arena: &Arena, rows: &[Row], code: Code) {
        for (number, row) in rows.iter().enumerate() {
            let no_code = matches!(row.attack, Attack::Upload { .. });
            if !(no_code && code == Code::Optimised) {
                self.row(arena, row, number, code, if no_code { "none" } else { code.as_str() });
            }
        }
    }

    fn row(&mut self, arena: &Arena, row: &Row, number: usize, code: Code, shown: &str) {
        let ran = catch_unwind(AssertUnwindSafe(|| row.run(arena, code, number)));
        let ran = ran.unwrap_or_else(|panic| Err(words(&panic)));
        let others = arena.others.turn();
        let (mut wrong, answer, after) = match ran {
            Ok(seen) => (Vec::new(), format!("{} {}", seen.status, seen.slug), format!("{:.1?}", seen.took)),
            Err(wrong) => (vec![wrong], String::new(), String::new()),
        };
        wrong.extend(others.failed.iter().map(|failure| format!("another caller: {failure}")));
        if arena.forged() {
            wrong.push("the upstream got what the guest forged".into());
        }
        let mut rss = 0;
        match arena.idle.kept_by(&arena.gw) {
            Ok(now) => rss = now.rss_kib >> 10,
            Err(over) => wrong.push(over),
        }
        let verdict = if wrong.is_empty() { "contained" } else { "BROKEN" };
        let all = others.sent;
        let fine = all - others.failed.len() as u64;
        let slowest = format!("{:.0?}", others.slowest);
        println!(
            "{:<32} {:<46} {shown:<14} {answer:<33} {after:>9} {:>12} {slowest:>9} {rss:>6}  {verdict}",
            row.threat,
            row.variant,
            format!("{fine}/{all}"),
        );
        for wrong in &wrong {
            println!("    {}", wrong.trim_end().replace('\n', "\n    "));
        }
        match wrong.is_empty() {
            true => self.contained += 1,
            false => self.broken.push(format!("{}, {}, {shown}", row.threat, row.variant)),
        }
    }

    #[track_caller]
    pub fn end(self) {
        println!("{} of {} contained", self.contained, self.contained as usize + self.broken.len());
        assert!(self.broken.is_empty(), "not contained: {:#?}", self.broken);
    }
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic").to_owned()
}

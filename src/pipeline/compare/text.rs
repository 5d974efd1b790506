//! A comparison for people.

use super::fields::{Field, plain};
use super::{BlobPair, Cause, Comparison, Effect, First, StageComparison};
use crate::pipeline::words::table;

/// How many names are given before the rest is counted.
const MAX_NAMED: usize = 3;
/// Characters of a name that still heads a column.
const MAX_NAME: usize = 16;

impl Comparison {
    /// Nothing that has an effect differs.
    pub fn is_equal(&self) -> bool {
        self.stages.iter().all(|stage| stage.differ + stage.unknown + stage.only_left + stage.only_right == 0)
    }

    /// For people. `names`: left and right.
    pub fn text(&self, names: [&str; 2]) -> String {
        let [left, right] = names;
        let effects = self.effects.iter().any(|effect| effect.left.is_some() || effect.right.is_some());
        let effects = if effects { format!("\n{}", table(&self.effect_rows(names))) } else { String::new() };
        let changes: String = self.changes.iter().map(|line| format!("{line}\n")).collect();
        if self.is_equal() {
            let n: usize = self.stages.iter().map(|stage| stage.equal).sum();
            let fields = self.fields_text();
            let head = match self.changes.is_empty() {
                true => format!("`{left}` and `{right}` are one experiment: all {n} units are the same\n"),
                // Files that are as they are now on both sides.
                false => format!("but for these, `{left}` and `{right}` do the same: {n} units\n"),
            };
            return format!("{changes}{head}{fields}{effects}");
        }
        let parts = match &self.first {
            Some(First { unit, causes }) => {
                let causes = causes.iter().map(|cause| format!("  {}\n", cause.text(names)));
                format!("`{left}` and `{right}` part at {unit}:\n{}", causes.collect::<String>())
            }
            None => format!("what `{left}` and `{right}` both compute differs in nothing of its own\n"),
        };
        let counts = table(&self.counts(names));
        let width = counts.lines().map(|line| line.chars().count()).max().unwrap_or(0);
        let by = std::iter::once("by".to_owned()).chain(self.stages.iter().map(StageComparison::by));
        let lines =
            counts.lines().zip(by).map(|(line, by)| format!("{line:<width$}  {by}").trim_end().to_owned() + "\n");
        let fields = self.fields_text();
        format!("{changes}{parts}{fields}\n{}\n{}\n{effects}", lines.collect::<String>(), self.blobs_text())
    }

    /// What the file has to do with it: a line each for the fields that make the difference and for the others.
    fn fields_text(&self) -> String {
        let line = |(head, has_effect): (&str, bool)| {
            let of = self.fields.iter().filter(|field| field.has_effect == has_effect);
            let named: Vec<String> = of.map(Field::to_string).collect();
            if named.is_empty() { String::new() } else { format!("{head}: {}\n", named.join(", ")) }
        };
        [("in the settings", true), ("without effect", false)].into_iter().map(line).collect()
    }

    /// Of each stage, units: equal, differing and so on; without the columns that have none.
    fn counts(&self, names: [&str; 2]) -> Vec<Vec<String>> {
        let is_short = names.iter().all(|name| name.chars().count() <= MAX_NAME);
        let [left, right] = if is_short { names } else { ["1st", "2nd"] };
        let only = [left, right].map(|name| format!("only {name}"));
        let columns: [(&str, fn(&StageComparison) -> usize); 5] = [
            ("equal", |stage| stage.equal),
            ("differ", |stage| stage.differ),
            ("not known yet", |stage| stage.unknown),
            (&only[0], |stage| stage.only_left),
            (&only[1], |stage| stage.only_right),
        ];
        let has_some = |of: fn(&StageComparison) -> usize| self.stages.iter().any(|stage| of(stage) > 0);
        let there: Vec<_> = columns.into_iter().filter(|(_, of)| has_some(*of)).collect();
        let number = |n: usize| if n == 0 { "-".to_owned() } else { n.to_string() };
        let head = std::iter::once("stage").chain(there.iter().map(|(name, _)| *name)).map(str::to_owned);
        let row = |stage: &StageComparison| {
            std::iter::once(stage.stage.to_owned()).chain(there.iter().map(|(_, of)| number(of(stage)))).collect()
        };
        std::iter::once(head.collect()).chain(self.stages.iter().map(row)).collect()
    }

    fn blobs_text(&self) -> String {
        let sum = |of: fn(&StageComparison) -> usize| self.stages.iter().map(of).sum::<usize>();
        let (n_compared, n_equal) = (sum(|stage| stage.blobs_differ + stage.blobs_equal), self.equal_blobs.len());
        let n = sum(|stage| stage.differ + stage.unknown);
        let mut lines = Vec::new();
        match &self.first_blob {
            Some(BlobPair { unit, output, left, right }) => lines.push(format!(
                "first artifact that differs: {output} of {unit}, {} and {}",
                left.short(),
                right.short()
            )),
            None if n_compared > 0 => lines.push("no artifact differs".to_owned()),
            None => {}
        }
        match n - n_compared {
            0 => {}
            missing => lines.push(format!(
                "{missing} of {n} units that differ, or may, have still to run, so what they give cannot be compared"
            )),
        }
        if !self.equal_blobs.is_empty() {
            let named = self.equal_blobs.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>().join(", ");
            let more = n_equal.saturating_sub(MAX_NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            lines.push(format!("other keys, equal artifacts: {named}{more}; what reads only these is shared"));
        }
        lines.join("\n")
    }

    fn effect_rows(&self, [left, right]: [&str; 2]) -> Vec<Vec<String>> {
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1}"));
        let head = ["mIoU in %", left, right, "difference"].map(str::to_owned).to_vec();
        let row = |effect: &Effect| {
            let difference = effect.difference.map_or("-".to_owned(), |value| format!("{value:+.1}"));
            vec![effect.metric.to_owned(), number(effect.left), number(effect.right), difference]
        };
        std::iter::once(head).chain(self.effects.iter().map(row)).collect()
    }
}

impl StageComparison {
    /// What differs, in words; from which unit on, where that is not the first.
    fn by(&self) -> String {
        let named = |(at, First { unit, causes }): (usize, &First)| {
            let names = causes.iter().map(Cause::name).collect::<Vec<_>>().join(", ");
            let item = unit.strip_prefix(self.stage).unwrap_or(unit).trim_start();
            if at == 0 { names } else { format!("{names} from {item}") }
        };
        match self.parts.is_empty() {
            false => self.parts.iter().enumerate().map(named).collect::<Vec<_>>().join("; "),
            true if self.differ + self.unknown > 0 => "what it reads".to_owned(),
            true => String::new(),
        }
    }
}

impl Cause {
    /// In a word or two.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Version { .. } => "stage version".to_owned(),
            Self::Param { path, .. } => path.clone(),
            Self::OnlyLeft { slot }
            | Self::OnlyRight { slot }
            | Self::Order { slot }
            | Self::Content { slot, .. }
            | Self::Input { slot, .. }
            | Self::Items { slot, .. } => slot.clone(),
        }
    }

    fn text(&self, [left_name, right_name]: [&str; 2]) -> String {
        match self {
            Self::Version { left, right } => format!("stage version: {left} -> {right}"),
            Self::Param { path, left, right } => param_text(path, left.as_ref(), right.as_ref()),
            Self::OnlyLeft { slot } => format!("input `{slot}`: only `{left_name}` reads it"),
            Self::OnlyRight { slot } => format!("input `{slot}`: only `{right_name}` reads it"),
            Self::Content { slot, left, right } | Self::Input { slot, left, right } => {
                format!("input `{slot}`: {left} -> {right}")
            }
            Self::Order { slot } => format!("inputs `{slot}` stand in another order"),
            Self::Items { slot, only_left, only_right, changed } => {
                let (of_left, of_right) = (format!("only in `{left_name}`"), format!("only in `{right_name}`"));
                items_text(slot, [(&of_left, only_left), (&of_right, only_right), ("of other content", changed)])
            }
        }
    }

    /// As a change of what was, left, to what is.
    pub(in crate::pipeline) fn since(&self) -> String {
        match self {
            Self::Version { left, right } => format!("stage version: {left} -> {right}"),
            Self::Param { path, left, right } => param_text(path, left.as_ref(), right.as_ref()),
            Self::OnlyLeft { slot } => format!("it does not read `{slot}` any more"),
            Self::OnlyRight { slot } => format!("it reads `{slot}`, which it did not"),
            Self::Content { slot, .. } => format!("input `{slot}` has other content"),
            Self::Input { slot, left, right } => format!("input `{slot}`: {left} -> {right}"),
            Self::Order { slot } => format!("inputs `{slot}` stand in another order"),
            Self::Items { slot, only_left, only_right, changed } => {
                items_text(slot, [("added", only_right), ("removed", only_left), ("changed", changed)])
            }
        }
    }
}

fn param_text(path: &str, left: Option<&serde_json::Value>, right: Option<&serde_json::Value>) -> String {
    let said = |side: Option<&_>| side.map_or_else(|| "default".to_owned(), plain);
    format!("parameter `{path}`: {} -> {}", said(left), said(right))
}

fn items_text(slot: &str, parts: [(&str, &Vec<String>); 3]) -> String {
    let part = |(what, items): (&str, &Vec<String>)| {
        let named = items.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>().join(", ");
        let more = items.len().saturating_sub(MAX_NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        (!items.is_empty()).then(|| format!("{} {what} ({named}{more})", items.len()))
    };
    format!("inputs `{slot}`: {}", parts.into_iter().filter_map(part).collect::<Vec<_>>().join(", "))
}

//! Tables of results in LaTeX that say where each number comes from, and the check of such a table.
//!
//! ```text
//! % s2c: pipeline {"file":"ablation.toml"}
//! \begin{tabular}{lc}
//! variant & seed mIoU \\
//! \hline
//! S2C & 51.0 \\
//! % s2c: S2C/seed mIoU 2c7d..
//! \end{tabular}
//! ```
//!
//! The n-th comment below a row is of its n-th cell after the name. It has the digest of the evaluation that the number
//! was read from; for a mean, those of all runs with commas between them; for a p, pairs `run:baseline`; or `-`. A number
//! that is not to be trusted has a dagger, and the reason stands in a comment below its row; who takes the dagger away
//! edits no number.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::repeats::{mean_std, mean_text, p_text, paired_t};
use crate::digest::BlobDigest;

const MARK: &str = "% s2c: ";
const SOURCE: &str = "pipeline ";
/// Behind a number that is not to be trusted.
const DOUBTFUL: &str = "$^\\dagger$";
/// The column that is read from another field than `miou`.
pub(super) const THRESHOLD: &str = "threshold";

/// What a table was made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableSource {
    /// Pipeline file, as it was named.
    pub file: String,
    /// Overrides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<String>,
    /// The baseline that was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<String>,
}

/// Digests of evaluations that a cell stands for.
#[derive(Clone, Debug, PartialEq)]
pub enum Stands {
    Nothing,
    One(BlobDigest),
    Mean(Vec<BlobDigest>),
    /// Run and baseline.
    Paired(Vec<(BlobDigest, BlobDigest)>),
}

/// A number of a table, in LaTeX.
#[derive(Clone, Debug, PartialEq)]
pub struct TableCell {
    pub text: String,
    pub stands: Stands,
    /// Reasons not to trust it.
    pub doubts: Vec<String>,
}

/// A table before it is written.
#[derive(Clone, Debug, PartialEq)]
pub struct Tabular {
    /// The first is that of names.
    pub columns: Vec<String>,
    /// Names and, for each further column, a cell.
    pub rows: Vec<(String, Vec<TableCell>)>,
}

impl Tabular {
    pub fn latex(&self, source: &TableSource) -> String {
        let Self { columns, rows } = self;
        let source = serde_json::to_string(source).unwrap_or_default();
        let head = columns.iter().map(|column| escaped(column)).collect::<Vec<_>>().join(" & ");
        let aligned = "c".repeat(columns.len() - 1);
        let mut text = format!("{MARK}{SOURCE}{source}\n\\begin{{tabular}}{{l{aligned}}}\n{head} \\\\\n\\hline\n");
        for (name, cells) in rows {
            let mark = |cell: &TableCell| if cell.doubts.is_empty() { "" } else { DOUBTFUL };
            let numbers: String = cells.iter().map(|cell| format!(" & {}{}", cell.text, mark(cell))).collect();
            text.push_str(&format!("{}{numbers} \\\\\n", escaped(name)));
            for (column, cell) in columns.iter().skip(1).zip(cells) {
                text.push_str(&format!("{MARK}{}/{column} {}\n", one_line(name), cell.stands));
            }
            for (column, cell) in columns.iter().skip(1).zip(cells) {
                for doubt in &cell.doubts {
                    text.push_str(&format!("% dagger: {}/{column}: {}\n", one_line(name), one_line(doubt)));
                }
            }
        }
        text + "\\end{tabular}\n"
    }

    /// The place of a column that a comment names, the one before it in its row being at `before`.
    ///
    /// Titles are unique. They were not always: each column of a p was titled `p` and stood behind that of its mean.
    fn place(&self, column: &str, before: Option<usize>) -> Option<usize> {
        let titles = || self.columns.iter().enumerate().skip(1);
        let titled = titles().find(|(_, known)| *known == column).map(|(at, _)| at);
        let behind =
            || before.map(|before| before + 1).filter(|at| self.columns.get(*at).is_some_and(|of| is_of_p(of)));
        titled.or_else(|| (column == P).then(behind).flatten())
    }

    fn cell(&self, row: &str, column: usize) -> Option<&TableCell> {
        let (_, cells) = self.rows.iter().find(|(name, _)| one_line(name) == row)?;
        cells.get(column.checked_sub(1)?)
    }
}

/// How the title of a column of p begins; it is all of it where there is one such column.
pub(super) const P: &str = "p";

fn is_of_p(title: &str) -> bool {
    title == P || title.starts_with("p (")
}

fn one_line(name: &str) -> String {
    name.replace(['\n', '\r'], " ")
}

/// A text as LaTeX shows it, at the beginning of a cell.
pub(super) fn escaped(text: &str) -> String {
    let mut before = None;
    let special = |c: char| {
        let escaped = match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => format!("\\{c}"),
            '\\' => "\\textbackslash{}".to_owned(),
            '~' | '^' => format!("\\{c}{{}}"),
            // In the fonts that LaTeX begins with these have other signs in their places.
            '<' => "\\textless{}".to_owned(),
            '>' => "\\textgreater{}".to_owned(),
            '|' => "\\textbar{}".to_owned(),
            '"' => "\\textquotedbl{}".to_owned(),
            // Behind the `\\\\` of the row before they would be its options.
            '[' | '*' if before.is_none() => format!("{{{c}}}"),
            // Two of them would be drawn as one.
            '-' | '\'' | '`' | ',' if before == Some(c) => format!("{{}}{c}"),
            '\n' | '\r' => " ".to_owned(),
            c => c.to_string(),
        };
        before = Some(c);
        escaped
    };
    text.chars().map(special).collect()
}

impl fmt::Display for Stands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |parts: Vec<String>| parts.join(",");
        match self {
            Self::Nothing => f.write_str("-"),
            Self::One(digest) => write!(f, "{digest}"),
            // A mean of one run has a comma too: it is written another way than a plain number.
            Self::Mean(digests) => write!(f, "{},", joined(digests.iter().map(BlobDigest::to_string).collect())),
            Self::Paired(pairs) => f.write_str(&joined(pairs.iter().map(|(a, b)| format!("{a}:{b}")).collect())),
        }
    }
}

impl Stands {
    fn parse(text: &str) -> Option<Self> {
        let digest = |text: &str| text.parse::<BlobDigest>().ok();
        match text {
            "-" => Some(Self::Nothing),
            text if text.contains(':') => {
                let pair = |pair: &str| pair.split_once(':').and_then(|(a, b)| Some((digest(a)?, digest(b)?)));
                text.split(',').map(pair).collect::<Option<_>>().map(Self::Paired)
            }
            text if text.contains(',') => {
                text.trim_end_matches(',').split(',').map(digest).collect::<Option<_>>().map(Self::Mean)
            }
            text => digest(text).map(Self::One),
        }
    }

    /// The LaTeX that it gives in a column.
    ///
    /// # Errors
    /// A digest that `read` does not know, or that is of no evaluation.
    fn text(
        &self,
        column: &str,
        as_before: bool,
        read: &dyn Fn(&BlobDigest) -> Option<Value>,
    ) -> Result<String, BlobDigest> {
        let field =
            |digest: &BlobDigest, name: &str| read(digest).and_then(|found| found.get(name)?.as_f64()).ok_or(*digest);
        let percent = |digest: &BlobDigest| field(digest, "miou").map(|miou| miou * 100.0);
        Ok(match self {
            Self::Nothing => "-".to_owned(),
            Self::One(digest) if column == THRESHOLD => format!("{:.2}", field(digest, "threshold")?),
            Self::One(digest) => format!("{:.1}", percent(digest)?),
            Self::Mean(digests) => {
                let values: Vec<f64> = digests.iter().map(percent).collect::<Result<_, _>>()?;
                mean_std(&values).map_or_else(|| "-".to_owned(), |(mean, std)| mean_text(values.len(), mean, std, PM))
            }
            Self::Paired(pairs) => {
                let difference = |(a, b): &(BlobDigest, BlobDigest)| Ok(percent(a)? - percent(b)?);
                let differences: Vec<f64> = pairs.iter().map(difference).collect::<Result<_, BlobDigest>>()?;
                // Before, all had the digits of many pairs.
                p_latex(paired_t(&differences), if as_before { usize::MAX } else { pairs.len() })
            }
        })
    }
}

/// Between mean and deviation.
pub(super) const PM: &str = " $\\pm$ ";

pub(super) fn p_latex(p: Option<f64>, n_pairs: usize) -> String {
    p_text(p, n_pairs).replace('<', "$<$")
}

/// What is wrong with a cell.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "what")]
pub enum Fault {
    /// The pipeline gives something else now.
    Stale { says: String, now: String },
    /// No such evaluation is in the cache, or nothing tells which pipeline it is of.
    Unknown { digest: String },
    /// The number is not that of the digest.
    Edited { says: String, was: String },
}

/// A cell that was checked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Checked {
    /// Of its comment, from 1.
    pub line: usize,
    pub row: String,
    pub column: String,
    pub faults: Vec<Fault>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stale { says, now } => write!(f, "stale: it says {says}, the pipeline gives {now} now"),
            Self::Unknown { digest } => write!(f, "unknown: {digest}"),
            Self::Edited { says, was } => write!(f, "edited by hand: it says {says}, its digest stands for {was}"),
        }
    }
}

/// Checks every cell of a LaTeX file that has a digest. `read`: an evaluation by its digest; `now`: the table that a
/// source gives.
///
/// # Errors
/// Those of `now`.
pub fn check(
    tex: &str,
    read: &dyn Fn(&BlobDigest) -> Option<Value>,
    now: &mut dyn FnMut(&TableSource) -> anyhow::Result<Tabular>,
) -> anyhow::Result<Vec<Checked>> {
    let mut found: Vec<Checked> = Vec::new();
    let mut current: Option<Tabular> = None;
    let (mut row, mut is_row_over) = (String::new(), false);
    let mut cells: Vec<String> = Vec::new();
    // Places in `found` of the comments below the row.
    let mut below: Vec<usize> = Vec::new();
    // The column of the comment before.
    let mut before = None;
    for (number, line) in tex.lines().enumerate() {
        let Some(comment) = line.trim_start().strip_prefix(MARK) else {
            if is_row_over {
                close(&mut found, &mut below, &cells);
                (row, is_row_over) = (String::new(), false);
            }
            row.push_str(without_comment(line));
            row.push(' ');
            continue;
        };
        if let Some(source) = comment.strip_prefix(SOURCE) {
            current = serde_json::from_str(source).ok().map(|source| now(&source)).transpose()?;
            continue;
        }
        if !is_row_over {
            (cells, is_row_over, before) = (cells_of(&row), true, None);
        }
        below.push(found.len());
        let says = cells.get(below.len()).cloned().unwrap_or_default();
        found.push(checked(number + 1, comment, says, (current.as_ref(), &mut before), read));
    }
    close(&mut found, &mut below, &cells);
    Ok(found)
}

fn checked(
    line: usize,
    comment: &str,
    says: String,
    (current, before): (Option<&Tabular>, &mut Option<usize>),
    read: &dyn Fn(&BlobDigest) -> Option<Value>,
) -> Checked {
    let (name, digests) = comment.trim_end().rsplit_once(' ').unwrap_or((comment, ""));
    let (row, column) = name.rsplit_once('/').unwrap_or((name, ""));
    let (row, column) = (row.to_owned(), column.to_owned());
    let mut faults = Vec::new();
    match Stands::parse(digests) {
        None => faults.push(Fault::Unknown { digest: format!("`{digests}` is no digest") }),
        Some(stands) => {
            let as_before = stands.text(&column, true, read);
            match stands.text(&column, false, read) {
                Ok(_) if as_before.is_ok_and(|was| bare(&says) == bare(&was)) => {}
                Err(digest) => {
                    faults.push(Fault::Unknown { digest: format!("no evaluation `{digest}` in the cache") });
                }
                Ok(was) if bare(&says) != bare(&was) => faults.push(Fault::Edited { says: says.clone(), was }),
                Ok(_) => {}
            }
            let place = current.and_then(|table| table.place(&column, *before));
            *before = place;
            match current.map(|table| table.cell(&row, place?)) {
                None => {
                    faults.push(Fault::Unknown {
                        digest: format!("no line `{MARK}{SOURCE}..` above names its pipeline"),
                    });
                }
                Some(None) => faults.push(Fault::Stale { says, now: "no such cell".into() }),
                Some(Some(cell)) if cell.stands != stands => {
                    let now = if bare(&cell.text) == bare(&says) { "the same from another run" } else { &cell.text };
                    faults.push(Fault::Stale { says, now: now.to_owned() });
                }
                Some(Some(_)) => {}
            }
        }
    }
    Checked { line, row, column, faults }
}

/// Numbers of a row without a digest, or digests without a number, are edits of the whole row.
fn close(found: &mut [Checked], below: &mut Vec<usize>, cells: &[String]) {
    let numbers = cells.len().saturating_sub(1);
    if numbers != below.len()
        && let Some(first) = below.first()
    {
        let (says, was) = (format!("{numbers} numbers"), format!("{} digests below it", below.len()));
        found[*first].faults = vec![Fault::Edited { says, was }];
        // They may be those of other cells.
        below.iter().skip(1).for_each(|at| found[*at].faults.retain(|fault| !matches!(fault, Fault::Edited { .. })));
    }
    below.clear();
}

/// Cells of the last row in some LaTeX.
fn cells_of(text: &str) -> Vec<String> {
    let row = text.rsplit("\\\\").find(|part| part.replace("\\&", "").contains('&')).unwrap_or_default();
    let mut cells = vec![String::new()];
    let mut is_escaped = false;
    for c in row.chars() {
        match c {
            '&' if !is_escaped => cells.push(String::new()),
            c => cells.last_mut().into_iter().for_each(|cell| cell.push(c)),
        }
        is_escaped = c == '\\' && !is_escaped;
    }
    cells.iter().map(|cell| cell.trim().to_owned()).collect()
}

fn without_comment(line: &str) -> &str {
    let mut is_escaped = false;
    let end = line.char_indices().find(|(_, c)| {
        let is_comment = *c == '%' && !is_escaped;
        is_escaped = *c == '\\' && !is_escaped;
        is_comment
    });
    end.map_or(line, |(at, _)| &line[..at])
}

/// A cell without the mark of doubt and what makes it bold, underlined, or mathematics as a whole, and with single spaces.
fn bare(cell: &str) -> String {
    let mut text = cell.trim();
    text = text.strip_suffix(DOUBTFUL).unwrap_or(text).trim();
    loop {
        let inner = |text: &str| -> Option<usize> {
            let name = text.strip_prefix('\\')?;
            let open = name.find('{')?;
            (name[..open].chars().all(|c| c.is_ascii_alphabetic()) && text.ends_with('}')).then_some(open + 2)
        };
        text = match inner(text) {
            Some(at) => text[at..text.len() - 1].trim(),
            None if text.len() > 1
                && text.starts_with('$')
                && text.ends_with('$')
                && text.matches('$').count() == 2 =>
            {
                text[1..text.len() - 1].trim()
            }
            None => break,
        };
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

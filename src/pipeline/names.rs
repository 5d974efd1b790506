//! Names that people give: which are none, how they are printed, and what files and folders are called after them.

use std::collections::HashSet;
use std::fmt::Write;

use crate::data::text::is_hidden;
use crate::digest::BlobDigest;

/// Bytes of a file's or folder's name that is made of somebody's name; with an ending it stays below the 255 that file
/// systems take.
const MOST_BYTES: usize = 120;
/// Hexadecimal digits of a digest that stand for the rest of a name.
const N_DIGITS: usize = 8;

/// Why a text is no name, if it is none.
pub fn problem(name: &str) -> Option<String> {
    if name.trim().is_empty() {
        return Some("has no character that is seen".into());
    }
    let hidden = name.chars().find(|c| is_hidden(*c))?;
    Some(format!("has the character {}, which cannot be seen", hidden.escape_default()))
}

/// A text in one line that a terminal shows and does not obey; ends of lines and tabs stay where `lines` is true.
pub fn printable(text: &str, lines: bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' if lines => shown.push(c),
            c if is_hidden(c) => drop(write!(shown, "{}", c.escape_default())),
            c => shown.push(c),
        }
    }
    shown
}

/// Characters of a line of a message that are shown at either end of a longer one.
const MOST_OF_LINE: usize = 400;

/// A message as a terminal shows it, where a line that quotes very much is cut in its middle.
pub fn message(text: &str) -> String {
    let line = |line: &str| {
        let n_cut = line.chars().count().saturating_sub(2 * MOST_OF_LINE);
        // Cutting out less than a word of it would help nobody.
        if n_cut < MOST_OF_LINE {
            return line.to_owned();
        }
        let begin: String = line.chars().take(MOST_OF_LINE).collect();
        let end: String = line.chars().skip(MOST_OF_LINE + n_cut).collect();
        format!("{begin} [.. {n_cut} characters ..] {end}")
    };
    printable(text, true).split('\n').map(line).collect::<Vec<_>>().join("\n")
}

/// A name of no more than `most` bytes; of a longer one the beginning, with a digest of all of it.
pub fn shortened(name: &str, most: usize) -> String {
    if name.len() <= most {
        return name.to_owned();
    }
    let digest = digits_of(name);
    let end = name.floor_char_boundary(most.saturating_sub(digest.len() + 1));
    format!("{}-{digest}", &name[..end])
}

/// The first digits of the digest of a name.
pub fn digits_of(name: &str) -> String {
    let digest = BlobDigest::of(name.as_bytes()).to_string();
    digest[..N_DIGITS].to_owned()
}

/// A folder's name for each name, all different, also where a file system takes capital and small letters for equal. A
/// name keeps its folder when others come behind it.
pub fn folders<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut taken: HashSet<String> = HashSet::new();
    let folder = |name: &str| {
        let plain = plain(name);
        let mut folder = shortened(&plain, MOST_BYTES);
        if taken.contains(&folder.to_lowercase()) {
            folder = format!("{folder}-{}", digits_of(name));
        }
        taken.insert(folder.to_lowercase());
        folder
    };
    names.into_iter().map(folder).collect()
}

/// A name as that of one folder; different names stay different.
fn plain(name: &str) -> String {
    let last = name.char_indices().next_back().map_or(0, |(i, _)| i);
    // Some file systems drop a space or a point at the end.
    let is_plain = |i: usize, c: char| {
        c.is_alphanumeric() || ",=+-_".contains(c) || (c == ' ' && i > 0 && i < last) || (c == '.' && i > 0 && i < last)
    };
    let encode = |(i, c): (usize, char)| match is_plain(i, c) {
        true => c.to_string(),
        false => c.to_string().bytes().map(|byte| format!("%{byte:02x}")).collect(),
    };
    name.char_indices().map(encode).collect()
}

/// A word of a command as one may copy it into a shell (sh, bash, zsh, fish).
pub fn shell_quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-+=:,./@%".contains(c);
    match !word.is_empty() && word.chars().all(|c| is_plain(c) || (c.is_alphanumeric() && !c.is_ascii())) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_folder_of_its_own() {
        let names =
            ["S2C, cpm.tau=0.3", "..", "a/b", "a%2fb", "a_b", "\u{e9}", "../up", "S2C ", " S2C", "α–变体", ".a."];
        #[rustfmt::skip]
        let expected = [
            "S2C, cpm.tau=0.3", "%2e%2e", "a%2fb", "a%252fb", "a_b", "\u{e9}", "%2e.%2fup", "S2C%20", "%20S2C",
            "α%e2%80%93变体", "%2ea%2e",
        ];
        assert_eq!(folders(names), expected);
        let of = |names: &[&str]| folders(names.iter().copied());
        let cased = of(&["S2C", "s2c", "s2C"]);
        assert_eq!(cased[0], "S2C");
        assert_eq!(cased.iter().map(|name| name.to_lowercase()).collect::<HashSet<_>>().len(), 3, "{cased:?}");
        let (long, other) = ("n".repeat(300), "n".repeat(301));
        let folders = of(&[&long, &other, "short"]);
        assert!(folders.iter().all(|name| name.len() <= 130) && folders[0] != folders[1], "{folders:?}");
        assert_eq!(of(&["short", &long])[1], folders[0], "a name keeps its folder");
        assert!(of(&[&"变".repeat(200)])[0].len() <= 130);
    }

    #[test]
    fn what_cannot_be_seen_is_told() {
        for name in ["a\nb", "a\u{1b}[31m", "a\u{200b}", "\u{202e}a", "\u{0}", "\r", " ", "", "a\u{85}"] {
            assert!(problem(name).is_some(), "{name:?}");
        }
        for name in ["a b", "a/b", "../up", "α–变体", "\u{1f468}\u{200d}\u{1f469}", "x, y", "\"q\" (r) [s]; t"] {
            assert_eq!(problem(name), None, "{name:?}");
        }
        assert_eq!(printable("a\u{1b}[2Jb\r\nc\td", true), "a\\u{1b}[2Jb\\r\nc\td");
        assert_eq!(printable("a\nb", false), "a\\nb");
    }

    #[test]
    fn a_line_that_quotes_very_much_is_cut() {
        let long = format!("`labels.csv`: {} is no class\nthe second line", "x".repeat(300_000));
        let cut = message(&long);
        assert!(cut.starts_with("`labels.csv`: xxx") && cut.ends_with("x is no class\nthe second line"), "{cut}");
        assert!(cut.contains("x [.. 299226 characters ..] x") && cut.len() < 900, "{cut}");
        let short = format!("{}\n{}", "y".repeat(1100), "é".repeat(700));
        assert_eq!(message(&short), short);
        assert_eq!(message("a\u{1b}b"), "a\\u{1b}b");
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        #[rustfmt::skip]
        let cases = [
            ("cpm.tau=0.3", "cpm.tau=0.3"), ("a b", "'a b'"), ("x=[1,2]", "'x=[1,2]'"), ("it's", "'it'\\''s'"), ("", "''"),
            ("$HOME", "'$HOME'"), ("~/x", "'~/x'"), ("a!b", "'a!b'"), ("a#b?*\\", "'a#b?*\\'"), ("变体", "变体"),
        ];
        for (word, quoted) in cases {
            assert_eq!(shell_quoted(word), quoted);
        }
    }
}

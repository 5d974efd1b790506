//! Texts that other programs and people wrote: lists, tables, XML, JSON. One reading of their encodings, line ends and
//! invisible characters, and one way to show what they hold.

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE};

use super::door::Format;

/// Why a file is not read as a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NotText {
    pub(crate) problem: String,
    pub(crate) hint: String,
}

/// A text, and what it was where that is not plain UTF-8: `UTF-16`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) text: String,
    pub(crate) encoding: Option<String>,
}

const SAVE_AS_UTF_8: &str = "save the file as UTF-8";

/// A text in UTF-8 or, where its first bytes tell, UTF-16.
///
/// # Errors
/// It is in another encoding, which nothing tells, or no text at all.
pub(crate) fn decode(bytes: &[u8]) -> Result<Text, NotText> {
    match marked(bytes)? {
        Some(text) => Ok(text),
        None => match std::str::from_utf8(bytes) {
            Ok(text) => no_nul(text.to_owned(), None),
            Err(error) => {
                let at = error.valid_up_to();
                let (line, shown) = place(bytes, at);
                let (western, ..) = encoding_rs::WINDOWS_1252.decode(&bytes[at..=at]);
                Err(NotText {
                    problem: format!(
                        "line {line} is not UTF-8: `{shown}` has the byte 0x{:02x}, which is `{}` where the text is in \
                         Latin-1 (windows-1252)",
                        bytes[at],
                        shown_of(&western)
                    ),
                    hint: SAVE_AS_UTF_8.to_owned(),
                })
            }
        },
    }
}

/// The same for XML, which may declare its encoding. What is neither declared nor UTF-8 is replaced by `U+FFFD`: the
/// paths and comments that such files hold are not read, and a name of a class with this character is unknown.
pub(crate) fn decode_xml(bytes: &[u8]) -> Result<Text, NotText> {
    if let Some(text) = marked(bytes)? {
        return Ok(text);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        // Whatever is declared: bytes of another encoding are hardly ever valid UTF-8, unless they are ASCII.
        return no_nul(text.to_owned(), None);
    }
    let Some(label) = declared(bytes) else {
        return no_nul(String::from_utf8_lossy(bytes).into_owned(), Some("neither UTF-8 nor declared".to_owned()));
    };
    let hint = || SAVE_AS_UTF_8.to_owned();
    let Some(encoding) = Encoding::for_label(label.as_bytes()) else {
        return Err(NotText {
            problem: format!("it declares the encoding `{}`, which is not known", shown_of(&label)),
            hint: hint(),
        });
    };
    let (text, had_errors) = encoding.decode_without_bom_handling(bytes);
    match had_errors {
        true => Err(NotText { problem: format!("it is not in the encoding `{label}` that it declares"), hint: hint() }),
        false => no_nul(text.into_owned(), Some(label)),
    }
}

/// The encoding in `<?xml version="1.0" encoding="..."?>`.
fn declared(bytes: &[u8]) -> Option<String> {
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    let (head, _) = head.trim_start().strip_prefix("<?xml")?.split_once("?>")?;
    let (_, value) = head.split_once("encoding")?;
    let value = value.trim_start().strip_prefix('=')?.trim_start();
    let quote = value.chars().next().filter(|quote| ['"', '\''].contains(quote))?;
    value[1..].split_once(quote).map(|(label, _)| label.to_owned())
}

/// What the first bytes tell: a mark, the zeros of UTF-16, another kind of file. `None`: nothing.
fn marked(bytes: &[u8]) -> Result<Option<Text>, NotText> {
    let whole = |encoding: &'static Encoding, bytes: &[u8], name: &str| {
        let (text, had_errors) = encoding.decode_without_bom_handling(bytes);
        match had_errors {
            false => no_nul(text.into_owned(), Some(name.to_owned())).map(Some),
            true => {
                let problem = format!("it begins as {name} and is not whole");
                Err(NotText { problem, hint: SAVE_AS_UTF_8.to_owned() })
            }
        }
    };
    if let Some(what) = other_file(bytes) {
        let hint = match what {
            "a ZIP archive" => "a spreadsheet (.xlsx) is saved as CSV in UTF-8, an archive is unpacked",
            "a pointer of Git LFS, not the file itself" => "get the file itself: git lfs pull",
            _ => "give the text itself",
        };
        return Err(NotText { problem: format!("it is {what}, not a text"), hint: hint.to_owned() });
    }
    if bytes.starts_with(&[0xff, 0xfe, 0, 0]) || bytes.starts_with(&[0, 0, 0xfe, 0xff]) {
        return Err(NotText { problem: "it is in UTF-32".to_owned(), hint: SAVE_AS_UTF_8.to_owned() });
    }
    if let Some((encoding, length)) = Encoding::for_bom(bytes) {
        let name = if encoding == UTF_8 { "UTF-8 with a byte order mark" } else { "UTF-16" };
        return whole(encoding, &bytes[length..], name);
    }
    // Texts of ids and XML are nearly all ASCII: in UTF-16 each second byte is zero.
    let head = &bytes[..bytes.len().min(1 << 12) & !1];
    let zeros = |of: usize| head.iter().skip(of).step_by(2).filter(|byte| **byte == 0).count();
    match (zeros(0), zeros(1), head.len() / 2) {
        (0, odd, n) if n > 0 && odd * 10 > n * 8 => whole(UTF_16LE, bytes, "UTF-16"),
        (even, 0, n) if n > 0 && even * 10 > n * 8 => whole(UTF_16BE, bytes, "UTF-16"),
        _ => Ok(None),
    }
}

/// A known kind of file that is no text.
fn other_file(bytes: &[u8]) -> Option<&'static str> {
    match Format::of(bytes) {
        Format::Jpeg => Some("a JPEG image"),
        Format::Png => Some("a PNG image"),
        // Markup is a text, and these three letters may begin one.
        Format::OtherPicture("an SVG drawing" | "a Netpbm picture") if !bytes.contains(&0) => None,
        Format::NoPicture("an empty file" | "text" | "a web page" | "of no kind that is known") => {
            bytes.starts_with(&[0xd0, 0xcf, 0x11, 0xe0]).then_some("an old Office document")
        }
        Format::OtherPicture(name) | Format::NoPicture(name) => Some(name),
    }
}

fn no_nul(text: String, encoding: Option<String>) -> Result<Text, NotText> {
    match text.find('\0') {
        None => Ok(Text { text, encoding }),
        Some(at) => {
            let (line, _) = place(text.as_bytes(), at);
            let problem = format!("line {line} has a zero byte, as no text has");
            Err(NotText { problem, hint: SAVE_AS_UTF_8.to_owned() })
        }
    }
}

/// The number of a byte's line, from 1, and the line.
fn place(bytes: &[u8], at: usize) -> (usize, String) {
    let line = 1 + bytes[..at].iter().filter(|byte| **byte == b'\n').count();
    let start = bytes[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let end = bytes[at..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |n| at + n);
    (line, shown_of(&String::from_utf8_lossy(&bytes[start..end.min(start + 80)])))
}

/// Lines with their numbers from 1, by the ends of every system, without what is invisible at their ends.
pub(crate) fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    // DOS ends a text with Ctrl-Z.
    let text = text.strip_suffix('\u{1a}').unwrap_or(text);
    let text = text.strip_suffix("\r\n").or_else(|| text.strip_suffix(['\n', '\r'])).unwrap_or(text);
    let mut rest = Some(text);
    let split = std::iter::from_fn(move || {
        let (line, after) = split_line(rest?);
        rest = after;
        Some(line)
    });
    (1..).zip(split.map(clean))
}

/// The first line, and what comes behind its end, if it has one.
pub(crate) fn split_line(text: &str) -> (&str, Option<&str>) {
    let Some(end) = text.find(['\n', '\r']) else { return (text, None) };
    let length = if text[end..].starts_with("\r\n") { 2 } else { 1 };
    (&text[..end], Some(&text[end + length..]))
}

/// How many lines have characters that are neither seen nor white space, where some have.
pub(crate) fn unseen(text: &str) -> Option<String> {
    let n = text.split(['\n', '\r']).filter(|line| line.contains(is_invisible)).count();
    (n > 0).then(|| format!("{} with characters that cannot be seen", counted(n, "line")))
}

/// Whether a class has the name of the background, which is a label of every data set already.
pub(crate) fn is_background(name: &str) -> bool {
    ["background", "bg"].contains(&name.trim_matches('_').to_lowercase().as_str())
}

/// `1 line`, `2 lines`.
pub(crate) fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// `1 line is`, `2 lines are`.
pub(crate) fn are(n: usize, what: &str) -> String {
    format!("{} {}", counted(n, what), if n == 1 { "is" } else { "are" })
}

/// Without white space and invisible characters at both ends.
pub(crate) fn clean(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || is_invisible(c))
}

/// A character that a terminal obeys or does not show: control characters, ends of lines, marks of zero width, and those
/// that turn the direction of writing. Joiners, which some scripts need, are shown by what they join.
pub(crate) fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

fn is_joiner(c: char) -> bool {
    matches!(c, '\u{200c}' | '\u{200d}')
}

/// An end of a line or a control character.
fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

/// A character that takes no room on a screen. Joiners count, since nothing is joined at the end of an id.
fn is_invisible(c: char) -> bool {
    (is_hidden(c) && !is_control(c)) || is_joiner(c)
}

/// A foreign text for a message: what cannot be seen, or would change a terminal, is written as an escape.
pub(crate) fn shown_of(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match is_hidden(c) || is_joiner(c) || c == '\u{a0}' {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

/// A name that lists, tables and terminals can hold: not empty, no control character.
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), String> {
    match name.chars().find(|c| is_control(*c)) {
        _ if name.is_empty() => Err(format!("{what} is empty")),
        None => Ok(()),
        Some(c) => Err(format!("{what} `{}` has the control character `{}`", shown_of(name), c.escape_default())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf_16(text: &str, big: bool, mark: bool) -> Vec<u8> {
        let units = mark.then_some(0xfeff).into_iter().chain(text.encode_utf16());
        units.flat_map(|unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
    }

    #[test]
    fn encodings_are_told_apart() {
        let latin = |text: &str| text.chars().map(|c| c as u8).collect::<Vec<u8>>();
        let declared = r#"<?xml version="1.0" encoding="ISO-8859-1"?><a>é</a>"#;
        for (name, bytes, expected) in [
            ("plain", b"a\nb".to_vec(), Ok("a\nb")),
            ("byte order mark", "\u{feff}a".into(), Ok("a")),
            ("little UTF-16", utf_16("aé", false, true), Ok("aé")),
            ("big UTF-16", utf_16("aé", true, true), Ok("aé")),
            ("UTF-16 without its mark", utf_16("2007_000032\n", false, false), Ok("2007_000032\n")),
            ("big UTF-16 without its mark", utf_16("2007_000032\n", true, false), Ok("2007_000032\n")),
            ("BM begins a text", b"BM_1\n".to_vec(), Ok("BM_1\n")),
            (
                "Latin-1",
                latin("a\ncafé,1\n"),
                Err("line 2 is not UTF-8: `caf\u{fffd},1` has the byte 0xe9, which is `é`"),
            ),
            ("a zero", b"a\nb\0".to_vec(), Err("line 2 has a zero byte")),
            ("gzip", vec![0x1f, 0x8b, 8], Err("it is a gzip file")),
            ("Excel", b"PK\x03\x04".to_vec(), Err("it is a ZIP archive")),
            ("UTF-16 cut off", [utf_16("ab", false, true), vec![0]].concat(), Err("not whole")),
        ] {
            match (decode(&bytes), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.text, expected, "{name}"),
                (Err(found), Err(expected)) => assert!(found.problem.contains(expected), "{name}: {found:?}"),
                (found, _) => panic!("{name}: {found:?}"),
            }
        }
        assert_eq!(decode_xml(&latin(declared)).unwrap().text, declared);
        assert_eq!(decode_xml(declared.as_bytes()).unwrap().text, declared);
        // C# declares UTF-16 and saves UTF-8.
        let other = r#"<?xml version="1.0" encoding="utf-16"?><a/>"#;
        assert_eq!(decode_xml(other.as_bytes()).unwrap().text, other);
        assert_eq!(decode_xml(&latin("<a>é</a>")).unwrap().text, "<a>\u{fffd}</a>");
        let unknown = latin(r#"<?xml version="1.0" encoding="klingon"?><a>é</a>"#);
        assert!(decode_xml(&unknown).unwrap_err().problem.contains("`klingon`, which is not known"));
    }

    #[test]
    fn lines_of_every_system() {
        let found: Vec<_> = lines("a\r\nb\rc \n\n\u{200b}d\u{a0}\n").collect();
        assert_eq!(found, [(1, "a"), (2, "b"), (3, "c"), (4, ""), (5, "d")]);
    }

    #[test]
    fn what_cannot_be_seen_is_escaped() {
        assert_eq!(shown_of("a\t\u{1b}[2J\u{200b}é"), "a\\t\\u{1b}[2J\\u{200b}é");
        assert!(check_name("an id", "a\tb").unwrap_err().contains("`a\\tb` has the control character `\\t`"));
    }
}

//! Presets: what the paper and the authors' code do where they differ from the defaults of [`super::spec`]. A preset
//! gives defaults; whatever a file or `--set` says wins.

use toml::Value;

use super::spec::Preset;

/// A decision that presets take, as docs/presets.md lists them.
#[derive(Clone, Copy, Debug)]
pub struct Switch {
    /// Dotted path.
    pub field: &'static str,
    /// Where the difference is described, in the table of docs/presets.md.
    pub row: &'static str,
    /// `None`: as recommended, that is the field's own default.
    pub paper: Option<Literal>,
    pub authors_code: Option<Literal>,
}

/// A value of a field.
#[derive(Clone, Copy, Debug)]
pub enum Literal {
    Flag(bool),
    Count(i64),
    Number(f64),
    Choice(&'static str),
}

use Literal::{Choice, Count, Flag, Number};

const fn switch(
    field: &'static str,
    row: &'static str,
    paper: Option<Literal>,
    authors_code: Option<Literal>,
) -> Switch {
    Switch { field, row, paper, authors_code }
}

/// All of them; the rows are those of the comparison of paper and code.
#[rustfmt::skip]
pub const SWITCHES: [Switch; 29] = [
    //     field                                   row  paper                authors_code
    switch("classifier.ssc.temperature",          "1",  None,                Some(Number(1.0))),
    switch("classifier.ssc.proto_stopgrad",       "4",  None,                None),
    switch("classifier.ssc.unassigned_negative",  "6",  Some(Flag(true)),    Some(Flag(true))),
    switch("classifier.ssc.mask_absent_ids",      "7",  None,                Some(Flag(false))),
    switch("classifier.ssc.id_compaction",        "8",  None,                Some(Choice("buggy"))),
    switch("classifier.ssc.id_width",             "9",  None,                Some(Choice("u8_wrap"))),
    switch("classifier.ssc.level",                "-",  None,                None),
    switch("classifier.ssc.prototypes",           "-",  None,                None),
    switch("se_map.overlap",                      "5",  None,                Some(Choice("pred_iou_desc"))),
    switch("classifier.cpm.tau",                  "13", None,                None),
    switch("classifier.cpm.first_peak",           "15", None,                Some(Choice("drop_first"))),
    switch("classifier.cpm.exclude_border",       "16", None,                Some(Flag(true))),
    switch("classifier.cpm.peak_exact",           "17", None,                Some(Flag(false))),
    switch("classifier.cpm.min_distance",         "18", None,                None),
    switch("classifier.cpm.point_scale",          "19", None,                Some(Choice("h_only"))),
    switch("classifier.cpm.half_pixel",           "20", Some(Flag(false)),   Some(Flag(false))),
    switch("classifier.cpm.sam_input",            "21", None,                Some(Choice("online_crop"))),
    switch("classifier.cpm.mask_choice",          "22", None,                None),
    switch("classifier.cpm.multimask",            "23", None,                None),
    switch("classifier.cpm.alpha_sam",            "24", None,                None),
    switch("classifier.cpm.alpha_cam",            "25", None,                None),
    switch("classifier.cpm.logit_path",           "26", None,                Some(Choice("two"))),
    switch("classifier.cpm.pad_label",            "28", Some(Choice("bg")),  Some(Choice("bg"))),
    switch("classifier.cpm.absent_class",         "29", None,                None),
    switch("classifier.cpm.start_epoch",          "31", Some(Count(1)),      None),
    switch("classifier.momentum",                 "34", None,                Some(Number(0.0005))),
    switch("classifier.head_lr_mult",             "35", Some(Number(1.0)),   Some(Number(1.0))),
    switch("seed.sweep",                          "-",  None,                Some(Choice("early_stop"))),
    switch("seed.select",                         "42", None,                Some(Choice("best_gt"))),
];

impl Preset {
    /// Fields and values that differ from the defaults.
    pub(super) fn defaults(self) -> impl Iterator<Item = (&'static str, Value)> {
        SWITCHES.iter().filter_map(move |switch| {
            let value = match self {
                Self::Recommended => None,
                Self::Paper => switch.paper,
                Self::AuthorsCode => switch.authors_code,
            };
            Some((switch.field, value?.into()))
        })
    }
}

impl From<Literal> for Value {
    fn from(literal: Literal) -> Self {
        match literal {
            Flag(value) => Self::Boolean(value),
            Count(value) => Self::Integer(value),
            Number(value) => Self::Float(value),
            Choice(value) => Self::String(value.to_owned()),
        }
    }
}

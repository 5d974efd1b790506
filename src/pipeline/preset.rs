//! Presets: what the paper and the authors' code do where they differ from the defaults of [`super::spec`]; recipes: how
//! the field trains its segmentation networks. Both give defaults; whatever a file or `--set` says wins.

use toml::Value;

use super::spec::{Preset, Recipe};

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
    Numbers(&'static [f64]),
}

use Literal::{Choice, Count, Flag, Number, Numbers};

const fn switch(
    field: &'static str,
    row: &'static str,
    paper: Option<Literal>,
    authors_code: Option<Literal>,
) -> Switch {
    Switch { field, row, paper, authors_code }
}

/// The fields that set others: those that a preset or a recipe sets, where nothing else is written for them.
pub const SETS_OF_FIELDS: [&str; 2] = ["s2c.preset", "segmentation.recipe"];

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

/// What each recipe but `recommended` sets, as docs/segmentation.md lists it with the sources.
#[rustfmt::skip]
pub const RECIPES: [(&str, [Literal; 2]); 15] = [
    // field                         largefov_resnet38d                                aspp_v2_resnet101
    ("segmentation.backbone",       [Choice("resnet38d"),                              Choice("resnet101")]),
    ("segmentation.head",           [Choice("largefov"),                               Choice("aspp_v2")]),
    ("segmentation.stride",         [Count(8),                                         Count(8)]),
    ("segmentation.epochs",         [Count(19),                                        Count(28)]),
    ("segmentation.batch_size",     [Count(10),                                        Count(10)]),
    ("segmentation.crop",           [Count(448),                                       Count(321)]),
    ("segmentation.scale",          [Numbers(&[0.5, 1.5]),                             Numbers(&[0.5, 2.0])]),
    ("segmentation.lr",             [Number(1e-3),                                     Number(2.5e-4)]),
    ("segmentation.head_lr_mult",   [Number(10.0),                                     Number(10.0)]),
    ("segmentation.momentum",       [Number(0.9),                                      Number(0.9)]),
    ("segmentation.weight_decay",   [Number(5e-4),                                     Number(5e-4)]),
    ("segmentation.test_scales",    [Numbers(&[0.5, 0.75, 1.0, 1.25, 1.5, 1.75]),      Numbers(&[0.5, 0.75, 1.0, 1.25, 1.5])]),
    ("segmentation.test_flip",      [Flag(true),                                       Flag(true)]),
    ("segmentation.test_crf",       [Flag(true),                                       Flag(true)]),
    ("segmentation.crf.parameters", [Choice("seam"),                                   Choice("deeplab")]),
];

impl Recipe {
    /// Fields and values, `recommended`: none.
    pub(super) fn defaults(self) -> impl Iterator<Item = (&'static str, Value)> {
        let place = match self {
            Self::Recommended => None,
            Self::LargefovResnet38d => Some(0),
            Self::AsppV2Resnet101 => Some(1),
        };
        RECIPES.iter().filter_map(move |(field, values)| Some((*field, values[place?].into())))
    }
}

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
            Numbers(values) => Self::Array(values.iter().copied().map(Self::Float).collect()),
        }
    }
}

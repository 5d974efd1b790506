//! The fields of a pipeline file that make two variants different.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use crate::pipeline::preset::SETS_OF_FIELDS;
use crate::pipeline::spec::Spec;
use crate::pipeline::why::params_that_differ;

/// A field whose values differ.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Field {
    pub path: String,
    pub left: Value,
    pub right: Value,
    /// It is of a set of fields that makes of the left variant the right one, and none of which can be left out.
    pub has_effect: bool,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> {}", self.path, plain(&self.left), plain(&self.right))
    }
}

/// The fields in which two specs differ, as if all had an effect. A preset and a recipe are not among them: what they set
/// is.
pub fn differing(left: &Spec, right: &Spec) -> anyhow::Result<Vec<Field>> {
    let found = params_that_differ("", &serde_json::to_value(left)?, &serde_json::to_value(right)?);
    let of_fields = found.into_iter().filter(|(path, ..)| !SETS_OF_FIELDS.contains(&path.as_str()));
    Ok(of_fields.map(|(path, left, right)| Field { path, left, right, has_effect: true }).collect())
}

/// The presets and recipes in which two specs differ, before and after.
pub fn differing_sets(left: &Spec, right: &Spec) -> anyhow::Result<Vec<Field>> {
    let (left, right) = (serde_json::to_value(left)?, serde_json::to_value(right)?);
    let field = |path: &str| {
        let of = |spec: &Value| spec.pointer(&format!("/{}", path.replace('.', "/"))).cloned().unwrap_or_default();
        Field { path: path.to_owned(), left: of(&left), right: of(&right), has_effect: true }
    };
    Ok(SETS_OF_FIELDS.into_iter().map(field).filter(|field| field.left != field.right).collect())
}

/// Finds the fields that can be left out, one after the other: without any of the others the variants would differ.
/// `is_same`: the left variant with some fields of the right computes what the right one does.
pub fn find_effects(fields: &mut [Field], is_same: &dyn Fn(&[Field]) -> anyhow::Result<bool>) -> anyhow::Result<()> {
    for at in 0..fields.len() {
        fields[at].has_effect = false;
        fields[at].has_effect = !is_same(fields)?;
    }
    Ok(())
}

/// A spec with those fields of the right that have an effect.
pub fn with_effects(left: &Spec, fields: &[Field]) -> anyhow::Result<Spec> {
    let mut spec = serde_json::to_value(left)?;
    for Field { path, right, .. } in fields.iter().filter(|field| field.has_effect) {
        let mut place = &mut spec;
        for part in path.split('.') {
            place = &mut place[part];
        }
        *place = right.clone();
    }
    Ok(serde_json::from_value(spec)?)
}

/// A value for people: a group of them by name.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| format!("{name}={}", plain(value))).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    }
}

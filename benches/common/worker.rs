//! Our side of the benchmarks: the protocol of `common.py`, one JSON object a line.

use std::fs;
use std::io::{BufRead, stdin};
use std::time::Instant;

use anyhow::Context;
use serde_json::{Value, json};

/// Answers what is asked on stdin; `answer` is given what to do, and with what.
pub(crate) fn serve(mut answer: impl FnMut(&str, &Value) -> anyhow::Result<Value>) -> anyhow::Result<()> {
    #[cfg(feature = "torch")]
    s2c_pipe::model::memory::keep_freed();
    for line in stdin().lock().lines() {
        let asked: Value = serde_json::from_str(&line?)?;
        let answer = match asked["do"].as_str().unwrap_or_default() {
            "peak" => memory("VmHWM").map(|mib| json!({ "peak_mib": mib })),
            other => answer(other, &asked),
        };
        println!("{}", answer.unwrap_or_else(|error| json!({ "error": format!("{error:#}") })));
    }
    Ok(())
}

/// MiB of this process, Linux alone.
pub(crate) fn memory(field: &str) -> anyhow::Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(field)).with_context(|| format!("no {field}"))?;
    let kib: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib / 1024.0)
}

pub(crate) fn timed<T>(run: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(f64, T)> {
    let started = Instant::now();
    let result = run()?;
    Ok((started.elapsed().as_secs_f64(), result))
}

pub(crate) fn text<'a>(asked: &'a Value, name: &str) -> anyhow::Result<&'a str> {
    asked[name].as_str().with_context(|| format!("`{name}` is no text"))
}

pub(crate) fn number(asked: &Value, name: &str) -> anyhow::Result<u64> {
    asked[name].as_u64().with_context(|| format!("`{name}` is no number"))
}

pub(crate) fn read(asked: &Value, name: &str) -> anyhow::Result<Vec<u8>> {
    text(asked, name).and_then(|path| fs::read(path).with_context(|| path.to_owned()))
}

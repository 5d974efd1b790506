//! Tells the linker where libtorch is, so that the program runs without any exported variable.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Passed on by torch-sys, which is a direct dependency for this reason alone.
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").unwrap_or_default();
    if !lib.is_empty() {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed");
    }
    // No symbol of theirs is asked for, so the linker drops what torch-sys names; loaded, they announce the GPU.
    for of_gpu in ["torch_cuda", "torch_hip"] {
        if Path::new(&lib).join(format!("lib{of_gpu}.so")).exists() {
            println!("cargo:rustc-link-arg=-l{of_gpu}");
        }
    }
    println!(
        "cargo:rustc-env=S2C_LIBTORCH_VERSION={}",
        version(Path::new(&lib)).unwrap_or("of unknown version".into())
    );
}

/// What the binding is built against: libtorch has it in a file, PyTorch in a line of another.
fn version(lib: &Path) -> Option<String> {
    let folder = lib.parent()?;
    let file = std::fs::read_to_string(folder.join("build-version")).ok();
    let of_pytorch = || {
        let file = std::fs::read_to_string(folder.join("version.py")).ok()?;
        Some(file.lines().find_map(|line| line.strip_prefix("__version__ = "))?.trim_matches(['\'', '"']).to_owned())
    };
    file.map(|version| version.trim().to_owned()).or_else(of_pytorch)
}

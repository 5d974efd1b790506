//! Tells the linker where libtorch is, so that the program runs without any exported variable.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Passed on by torch-sys, which is a direct dependency for this reason alone.
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed");
    }
    // What the binding was built against; PyTorch and libtorch both carry the file.
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").unwrap_or_default();
    let version = std::path::Path::new(&lib).parent().map(|folder| folder.join("build-version"));
    let version = version.and_then(|file| std::fs::read_to_string(file).ok());
    let version = version.as_deref().map_or("of unknown version", str::trim);
    println!("cargo:rustc-env=S2C_LIBTORCH_VERSION={version}");
}

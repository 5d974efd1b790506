//! Tells the linker where libtorch is, so that the program runs without any exported variable.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Passed on by torch-sys, which is a direct dependency for this reason alone.
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed");
    }
}

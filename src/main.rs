fn main() -> std::process::ExitCode {
    s2c_pipe::cli::main()
}

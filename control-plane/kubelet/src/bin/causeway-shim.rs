//! `causeway-shim`: runs one container for the kubelet. See `kubelet::shim`.

fn main() -> std::process::ExitCode {
    kubelet::shim::main()
}

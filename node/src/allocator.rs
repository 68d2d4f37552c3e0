//! How the C library's allocator keeps the memory of what runs for long, the agent and the DNS server.

/// Keeps it together and gives it back early: one arena for all threads instead of eight for each CPU, and thresholds
/// that stay where they start, so that large blocks go back to the kernel as soon as they are freed. Threads of either
/// rarely allocate at the same time (answers of the DNS server are made without), and what one of them read the next
/// one frees. To be called before there are threads.
#[cfg(target_env = "gnu")]
pub fn prefer_small() {
    // The default; one that is set is not raised by what is freed.
    const TRIM_THRESHOLD: libc::c_int = 128 << 10;
    for (parameter, value) in [(libc::M_ARENA_MAX, 1), (libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD)] {
        #[expect(
            unsafe_code,
            reason = "the C library has no other way to say it from inside a process"
        )]
        // SAFETY: `mallopt` takes two numbers, knows which it accepts, and no other thread allocates yet.
        let accepted = unsafe { libc::mallopt(parameter, value) };
        debug_assert_eq!(accepted, 1, "parameter {parameter}");
    }
}

/// Other C libraries have no arenas.
#[cfg(not(target_env = "gnu"))]
pub fn prefer_small() {}

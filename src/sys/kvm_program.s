# The program of the KVM guest: write to the working set, at the given pace, for ever.
#
# Flat 64-bit code at CPL 3 with identity page tables. It runs wherever it lies, uses no stack, and never leaves the
# vCPU by itself: only a kick of the host stops it, between any two instructions. All that lasts is in the control page;
# what the registers hold is lost with them, and then the guest goes wrong: the check finds it.
#
# The same in Rust: src/guests/pattern.rs (where and what), src/guests/workload.rs (when).
#
#   rbx  the control page (set by the host)       r13, r14, r15  constants of the random sequence
#   r8   number n of the write                    rsi            guest time of the write

.set WORKING_SET_START, 0x1000000

# Offsets in the control page, see src/guests/control.rs.
.set WRITES, 8
.set LAST_WRITE, 16
.set LONGEST_GAP, 24
.set DUE, 32
.set CLOCK_GENERATION, 40
.set CLOCK_SCALE, 48
.set CLOCK_OFFSET, 56
.set PERIOD, 64
.set BACKLOG, 72
.set PATTERN, 80
.set SEED, 88
.set WORKING_SET, 96
.set HOT_PAGES, 104
.set HOT_SHARE, 112

# Positions in Pattern::ALL.
.set SWEEP, 0
.set REWRITE, 2

.pushsection .rodata.pageferry_guest_program, "a", @progbits
.hidden pageferry_guest_program
.global pageferry_guest_program
.hidden pageferry_guest_program_end
.global pageferry_guest_program_end

pageferry_guest_program:
    movabs  r13, 0x9e3779b97f4a7c15
    movabs  r14, 0xbf58476d1ce4e5b9
    movabs  r15, 0x94d049bb133111eb

.Lpageferry_next:
    mov     r8, qword ptr [rbx + WRITES]
    inc     r8

# Guest time = scaled counter + offset, read again when the host set the clock meanwhile: the counter of one host must
# not be added to the offset of another.
.Lpageferry_wait:
    mov     r9, qword ptr [rbx + CLOCK_GENERATION]
    rdtsc
    shl     rdx, 32
    or      rax, rdx
    mul     qword ptr [rbx + CLOCK_SCALE]
    shrd    rax, rdx, 32
    add     rax, qword ptr [rbx + CLOCK_OFFSET]
    cmp     r9, qword ptr [rbx + CLOCK_GENERATION]
    jne     .Lpageferry_wait
    cmp     rax, qword ptr [rbx + DUE]
    jb      .Lpageferry_wait
    mov     rsi, rax

    mov     r9, qword ptr [rbx + PATTERN]
    cmp     r9, SWEEP
    je      .Lpageferry_sweep

# x = word n of the random sequence.
    mov     rax, r8
    imul    rax, r13
    add     rax, qword ptr [rbx + SEED]
    mov     rcx, rax
    shr     rcx, 30
    xor     rax, rcx
    imul    rax, r14
    mov     rcx, rax
    shr     rcx, 27
    xor     rax, rcx
    imul    rax, r15
    mov     rcx, rax
    shr     rcx, 31
    xor     rax, rcx
    mov     r10, rax
    cmp     r9, REWRITE
    je      .Lpageferry_rewrite

# Random and hot-cold: hot or cold by bits 9 to 24 of x, the page of that part by its high bits, the word by its low
# bits; stores n.
    shr     rax, 9
    movzx   eax, ax
    xor     edi, edi
    mov     r11, qword ptr [rbx + HOT_PAGES]
    cmp     rax, qword ptr [rbx + HOT_SHARE]
    jb      .Lpageferry_place
    mov     rdi, r11
    mov     r11, qword ptr [rbx + WORKING_SET]
    sub     r11, rdi
.Lpageferry_place:
    mov     rax, r10
    mul     r11
    add     rdx, rdi
    shl     rdx, 12
    and     r10d, 511
    mov     qword ptr [rdx + r10 * 8 + WORKING_SET_START], r8
    jmp     .Lpageferry_done

# Sweep: page (n - 1) mod set, stores the pass (n - 1) / set + 1.
.Lpageferry_sweep:
    lea     rax, [r8 - 1]
    xor     edx, edx
    div     qword ptr [rbx + WORKING_SET]
    inc     rax
    shl     rdx, 12
    mov     qword ptr [rdx + WORKING_SET_START], rax
    jmp     .Lpageferry_done

# Rewrite: page (n - 1) mod set, word i becomes y(x + i * r13) with y(s) = (s xor (s >> 32)) * r14.
.Lpageferry_rewrite:
    lea     rax, [r8 - 1]
    xor     edx, edx
    div     qword ptr [rbx + WORKING_SET]
    shl     rdx, 12
    lea     rdi, [rdx + WORKING_SET_START]
    xor     ecx, ecx
.Lpageferry_word:
    mov     rax, r10
    shr     rax, 32
    xor     rax, r10
    imul    rax, r14
    mov     qword ptr [rdi + rcx * 8], rax
    add     r10, r13
    inc     ecx
    cmp     ecx, 512
    jb      .Lpageferry_word

# The write is whole: count it, note its time and the gap before it (the first has none).
.Lpageferry_done:
    mov     qword ptr [rbx + WRITES], r8
    mov     rdx, rsi
    sub     rdx, qword ptr [rbx + LAST_WRITE]
    mov     qword ptr [rbx + LAST_WRITE], rsi
    jbe     .Lpageferry_pace
    cmp     r8, 1
    je      .Lpageferry_pace
    cmp     rdx, qword ptr [rbx + LONGEST_GAP]
    jbe     .Lpageferry_pace
    mov     qword ptr [rbx + LONGEST_GAP], rdx

# Due = max(due + period, now - backlog).
.Lpageferry_pace:
    mov     rcx, qword ptr [rbx + DUE]
    add     rcx, qword ptr [rbx + PERIOD]
    mov     rdx, rsi
    sub     rdx, qword ptr [rbx + BACKLOG]
    cmp     rcx, rdx
    cmovb   rcx, rdx
    mov     qword ptr [rbx + DUE], rcx
    jmp     .Lpageferry_next

pageferry_guest_program_end:
.popsection

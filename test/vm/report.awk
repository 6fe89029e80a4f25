# Reads what a guest said, with the variables guest (KERNEL/TIER), skips (the
# file), and partial (set when only some tests were asked for). Prints a line for
# each check, "= GUEST CHECK
# PASSED FAILED SKIPPED SECONDS", and before it what is to
# be known of its failures. Go marks its own lines with ^V, so that one is
# found even after a test's unfinished one.

BEGIN {
	while ((getline line < skips) > 0) {
		if (line ~ /^#/ || split(line, field, /[ \t]+/) < 3 || guest !~ ("^(" field[1] ")$"))
			continue
		allowed[field[2]]
	}
}

{ sub(/\r$/, ""); n = split($0, part, "\026"); for (i = 1; i <= n; i++) if (i == n || part[i] != "") read(part[i]) }

END { if (check != "") finish("unknown", "-") }

function read(line) {
	if (line ~ /^@@ run /) return start(line)
	if (line ~ /^@@ done /) { split(line, f, " "); return finish(f[3], f[4]) }
	if (check == "") return
	last[++lines] = line
	if (line ~ /^ *=== (RUN|CONT|NAME) /) { split(line, f, " "); test = f[3] }
	else if (line ~ /^ *--- (PASS|FAIL|SKIP): /) ended(line)
	else if (line !~ /^ *=== / && line != "" && ++saidlines[test] <= 80) said[test] = said[test] line "\n"
}

function start(line,   f) {
	split(line, f, " ")
	check = f[3]
	lines = passed = failed = skipped = 0
	test = ""
	delete said
	delete saidlines
}

function ended(line,   f) {
	sub(/^ *--- /, "", line)
	split(line, f, " ")
	if (f[1] == "PASS:") { passed++; return }
	if (f[1] == "SKIP:" && may_skip(f[2])) { skipped++; return }
	failed++
	printf "%s %s: %s %s\n%s", guest, check, f[1] == "SKIP:" ? "skipped, which is not allowed here:" : "failed:", f[2], said[f[2]]
	if (saidlines[f[2]] > 80) print "    ... and " saidlines[f[2]] - 80 " lines more in its output"
}

function may_skip(name,   pattern) {
	for (pattern in allowed) if (name ~ ("^(" pattern ")$")) return 1
	return 0
}

# finish counts a check that is no Go test as one, and one that ran nothing or
# ended with an error that no test told, as a failure.
function finish(status, seconds,   i) {
	if (!is_package(check) && status == 0) passed = 1
	if (partial && status == 0 && !passed && !failed && !skipped) { check = ""; return }
	if (!failed && (status != 0 || !passed)) {
		failed = 1
		print guest " " check ": ended with status " status "; its last lines:"
		for (i = lines > 60 ? lines - 60 : 1; i <= lines; i++) print last[i]
	}
	print "= " guest, check, passed, failed, skipped, seconds
	check = ""
}

function is_package(check) { return check ~ /^(tracer|test)(\/|$)/ }

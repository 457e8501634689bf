#!/usr/bin/perl

# Copyright (C) The nginx referral module authors

# config and tools/build-module: where the filter stands, what is missing,
# what does not match.

use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Temp qw(tempdir);
use Test::More;

my $root = abs_path(dirname(__FILE__) . '/..');
my $source = '/usr/share/nginx/src';

$ENV{PATH} .= ':/usr/sbin';

my $nginx = (grep { -x } map { "$_/nginx" } split(/:/, $ENV{PATH}))[0];

plan(skip_all => 'needs nginx and nginx-dev')
    unless $nginx && -f "$source/src/core/nginx.h";

my $dir = tempdir('referral-build-XXXXXX', TMPDIR => 1, CLEANUP => 1);

delete $ENV{$_} for qw(NGINX CC CFLAGS MAKEFLAGS MFLAGS MAKELEVEL);

$ENV{BUILD} = "$dir/build";
$ENV{JOBS} = 2;

sub run {
    my ($args, %env) = @_;

    local %ENV = (%ENV, %env);

    my $output = `cd $dir && $args 2>&1`;

    return ($? >> 8, $output);
}


sub slurp {
    my ($path) = @_;

    open(my $fh, '<:raw', $path) or return '';
    local $/;
    return <$fh>;
}


sub spew {
    my ($path, $data, $mode) = @_;

    open(my $fh, '>:raw', $path) or die "$path: $!\n";
    print $fh $data;
    close($fh) or die "$path: $!\n";
    chmod($mode // 0644, $path);

    return $path;
}


my $tool = "$root/tools/build-module";

my ($status, $output) = run("$tool --help");

is($status, 0, '--help');
like($output, qr/^Usage: tools\/build-module/, 'says how it is used');

($status, $output) = run("$tool --nonsense");
is($status, 2, 'an unknown option is a wrong usage');

($status, $output) = run("$tool $dir");
is($status, 1, 'a directory without nginx is refused');
like($output, qr/"\Q$dir\E" is not a source tree of nginx/, 'and named');


# libraries that are missing: a compiler that does not find their headers

my $cc = spew("$dir/cc", <<'END', 0755);
#!/bin/sh
for file; do
    case $file in
    *autotest.c)
        ! grep -qE '<(hiredis/hiredis|maxminddb|openssl/sha)\.h>' $file \
            || exit 1
    esac
done
exec cc "$@"
END

($status, $output) = run($tool, CC => $cc, BUILD => "$dir/missing");

is($status, 1, 'the build fails without its libraries');
like($output, qr/install: libhiredis-dev libmaxminddb-dev libssl-dev$/m,
     'and says what to install');


# dynamic, with the other compiler, without a warning

my @clang = grep { -x "$_/clang" } split(/:/, $ENV{PATH});

($status, $output) = run($tool, @clang ? (CC => 'clang') : ());

is($status, 0, 'the module is built' . (@clang ? ' by clang' : ''))
    or diag($output);

my $module = "$dir/build/ngx_http_referral_module.so";

ok(-f $module, 'and stands in BUILD');

my ($work) = glob("$dir/build/nginx-*");

like(slurp("$work/objs/ngx_http_referral_module_modules.c"),
     qr/module_order\[\]\ =\ \{\s*"ngx_http_referral_module",
        \s*"ngx_http_headers_filter_module",/x,
     'dynamic: our filter runs after the headers filter');

my $undefined = `nm -u $module`;

is(join(' ', $undefined =~ /\b((?:ngx_http_)?referral_\w+)/g), '',
   'nothing of ours is missing in it');

my $conf = spew("$dir/nginx.conf", <<END);
load_module $module;
pid $dir/nginx.pid;
error_log stderr;
events { }
http { access_log off; server { listen unix:$dir/sock; } }
END

($status, $output) = run("$nginx -t -p $dir -c $conf");
is($status, 0, 'it loads') or diag($output);

($status, $output) = run("$tool --check $module");
is($status, 0, '--check agrees') or diag($output);


# again: nothing is configured anew

my $configured = (stat("$work/objs/Makefile"))[9];

($status, $output) = run($tool, @clang ? (CC => 'clang') : ());

is($status, 0, 'built again');
is((stat("$work/objs/Makefile"))[9], $configured, 'without configure');


# what does not match is named

my $binary = slurp($nginx);
my ($signature) = $binary =~ /([48],[48],[48],[01]{34})/;

ok($signature, 'the binary has a signature');

my $other = $signature;

substr($other, 6 + $_ - 1, 1) =~ tr/01/10/ for 23, 34;

(my $changed = $binary) =~ s/\Q$signature\E/$other/g;

spew("$dir/nginx-other", $changed, 0755);

($status, $output) = run("$tool --check $module", NGINX => "$dir/nginx-other");

is($status, 1, 'another signature: refused');
like($output, qr/bit 23, NGX_PCRE, is 1 in the module, 0 in "\S+nginx-other"/,
     'another signature: the first feature');
like($output, qr/bit 34, NGX_COMPAT, is 1 in the module, 0 in/,
     'another signature: the second feature');
is(scalar(() = $output =~ /\bbit \d+/g), 2, 'another signature: no more');

($status, $output) = run($tool, NGINX => "$dir/nginx-other",
                         @clang ? (CC => 'clang') : ());

is($status, 1, 'a build for it: fails');
like($output, qr/cannot be loaded by "\S+nginx-other"/, 'a build for it: why');

my ($version) = `$nginx -v 2>&1` =~ m{nginx/([0-9.]+)};
my $older = $version;

substr($older, -1) =~ tr/0-9/1-90/;

($changed = $binary) =~ s{nginx/\Q$version\E}{nginx/$older}g;

spew("$dir/nginx-older", $changed, 0755);

($status, $output) = run("$tool --check $module", NGINX => "$dir/nginx-older");

is($status, 1, 'another version: refused');
like($output, qr/version: the module is for nginx $version, \S+ is $older/,
     'another version: both are named');

($status, $output) = run("$tool --check $conf");
is($status, 1, 'a file that is no module: refused');


# static: where the filter stands, in a copy that has no sources

mkdir("$dir/static") or die "$dir/static: $!\n";
system("cp -r $source/* $dir/static/") == 0 or die "cp failed\n";

($status, $output) = run("cd static && ./configure --add-module=$root"
                         . ' --with-compat --with-http_addition_module');
is($status, 0, 'static: configured') or diag($output);

my $modules = slurp("$dir/static/objs/ngx_modules.c");
my ($names) = $modules =~ /ngx_module_names\[\] = \{(.*?)\}/s;
my @names = $names =~ /"(\w+)"/g;
my %place = map { $names[$_] => $_ } 0 .. $#names;

is($place{ngx_http_referral_module} + 1, $place{ngx_http_headers_filter_module},
   'static: our filter runs right after the headers filter');
is(scalar(grep { $_ eq 'ngx_http_referral_module' } @names), 1,
   'static: once');
cmp_ok($place{ngx_http_referral_module}, '>',
       $place{ngx_http_rewrite_module},
       'static: our handlers run before those of the rewrite module');

done_testing();

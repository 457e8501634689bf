package cycles;

# Copyright (C) The nginx referral module authors
#
# Instructions of a click by part, counted by valgrind's callgrind: the counts
# repeat from run to run.  A part has what it calls in it.  And those of a
# page: with a click, without one, and without the module.  What the kernel does
# is not in them; SHA-256 takes more than it should, since valgrind does not let
# it use the processor's own instructions.

use strict;
use warnings;

use File::Path qw(make_path remove_tree);


my @parts = (
    [ 'look the code up' => 'ngx_http_referral_lookup' ],
    [ 'read the headers' => 'ngx_http_referral_read_headers' ],
    [ 'id' => 'referral_uuid7' ],
    [ 'geo' => 'ngx_http_referral_geo_get' ],
    [ 'journal, encoded and appended' => 'ngx_http_referral_journal_append' ],
    [ 'destination' => 'referral_destination_plain' ],
    [ 'cookie, signed' => 'ngx_http_referral_cookie_set' ],
    [ 'Cache-Control' => 'ngx_http_referral_filter_no_store' ],
    [ 'commit: place, id, record, token' => 'ngx_http_referral_commit' ],
);


sub run {
    my ($b) = @_;

    $b->codes(1000);

    $b->write_file('html/page.html', 'x' x 4096);

    my $limit = count($b, 'return302', '/r/');
    my $ours = count($b, 'redirect', '/r/');
    my $off = count($b, 'page-off', '/page.html', pick => 'none');
    my $page = count($b, 'page', '/page.html', pick => 'none');
    my $param = count($b, 'page', '/page.html?ref=');
    my $cycles = $b->{result}{cycles} = {
        'whole request' => $ours->{total},
        'return302, whole request' => $limit->{total},
        'page, module not loaded' => $off->{total},
        'page, no click' => $page->{total},
        'page, ?ref=' => $param->{total},
    };

    for (@parts) {
        my ($part, $function) = @$_;
        $cycles->{"  $part"} = $ours->{$function} if $ours->{$function};
    }

    my $ratio = $b->{result}{ratio} //= {};

    $ratio->{instructions} = $ours->{total} / $limit->{total};
    $ratio->{instructions_page} = $page->{total} / $off->{total};
    $ratio->{instructions_param} = $param->{total} / $page->{total};
}


# instructions per request: of all, and of each function with what it calls

sub count {
    my ($b, $name, $path, %arg) = @_;

    $b->note("cycles: $name$path under valgrind");

    remove_tree($b->dir() . "/$name");
    make_path($b->dir() . "/$name/journal");

    my $file = $b->dir() . "/callgrind.$name";
    my $user = $> == 0 ? 'user root;' : '';

    unlink(glob("$file*"));

    my $nginx = $b->nginx($name, set => { STATUS => $b->port(),
        APP => $b->port(),
        GLOBAL => "daemon off;\nmaster_process off;\n$user\n"
                  . "pid " . $b->dir() . "/$name/pid;\n"
                  . "error_log " . $b->dir() . "/$name/error.log warn;\n"
                  . "events { worker_connections 1024; }\n" },
        alone => 1, wrap => [ 'valgrind', '--tool=callgrind', '-q',
                              "--callgrind-out-file=$file" ]);
    my $pid = $nginx->{process}->pid();
    my %slice = (name => $name, nginx => $name, path => $path, failing => 1,
                 %arg);

    # caches are warm first: each address was here, and each code

    for (my $warm = 0; $warm < 20_000; ) {
        $warm += $b->slice({ %slice, seconds => seconds($b, 6),
                             first => $warm })->{requests};
        last if $b->{seconds} < 1;
    }

    $b->run('callgrind_control', '-z', $pid);
    my $r = $b->slice({ %slice, seconds => seconds($b, 8) });
    $b->run('callgrind_control', '-d', $pid);
    $b->pause(0.5);
    $b->end_nginx($name);

    my ($dump) = sort { -M $a <=> -M $b } glob("$file.*");
    my %count;

    for (split(/\n/, $b->run('callgrind_annotate', '--inclusive=yes',
                             '--threshold=99.99', $dump)))
    {
        my ($n, $what) = /^\s*([\d,]+)\s*(?:\([\d. ]+%\))?\s+(.*)$/ or next;
        $n =~ tr/,//d;

        if ($what =~ /^PROGRAM TOTALS/) {
            $count{total} = $n / $r->{requests};
            next;
        }

        my ($function) = $what =~ /:([A-Za-z_0-9]+)(?:\s|'|$)/ or next;
        $count{$function} //= $n / $r->{requests};
    }

    return \%count;
}


sub seconds {
    my ($b, $whole) = @_;

    return $b->{seconds} < 1 ? 1 : $b->{fast} ? int($whole / 3) : $whole;
}


1;

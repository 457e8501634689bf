package page;

# Copyright (C) The nginx referral module authors
#
# Pages of 4 KB, from a file and from behind a proxy: page.conf with the
# module, with and without "?ref=", and page-off.conf without it.  Clicks have
# servers of their own, so that what is left of them, the syncing of the
# journal, is nobody else's cost.

use strict;
use warnings;


sub run {
    my ($b) = @_;

    $b->codes(1000);
    $b->write_file('html/page.html', 'x' x 4096);

    my $app = $b->nginx('app')->{port};

    for my $name (qw(page page-ref proxy-ref)) {
        mkdir($b->dir() . "/$name");
        mkdir($b->dir() . "/$name/journal");
        $b->nginx($name, conf => 'page', set => { APP => $app });
    }

    $b->nginx('page-off', set => { APP => $app });

    my @none = (pick => 'none');
    my @clicks = (settle => 0.6);

    $b->note('page: with the module, with ?ref=, without the module');
    $b->measure(
        { name => 'page', nginx => 'page', path => '/page.html', @none },
        { name => 'page_off', nginx => 'page-off', path => '/page.html',
          @none },
        { name => 'page_ref', nginx => 'page-ref',
          path => '/page.html?ref=', @clicks },
        { name => 'proxy', nginx => 'page', path => '/app/page', @none },
        { name => 'proxy_off', nginx => 'page-off', path => '/app/page',
          @none },
        { name => 'proxy_ref', nginx => 'proxy-ref',
          path => '/app/page?ref=', @clicks });

    $b->set_ratio('param_page', 'page_ref', 'page');
    $b->set_ratio('off_page', 'page', 'page_off');
    $b->set_ratio('param_proxy', 'proxy_ref', 'proxy');
    $b->set_ratio('off_proxy', 'proxy', 'proxy_off');

    $b->end_nginx($_) for qw(page page-ref proxy-ref page-off app);
}


1;
